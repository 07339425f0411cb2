"""``tenon train``, ``eval``, ``deploy`` and ``run``."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from deploy.cli_stack import Json, Model, Port, settings_of, settings_to_run
from deploy.console import console, print_json, step
from deploy.extras import need
from deploy.sampling_options import policy_of
from deploy.snippets import curl_snippet, python_snippet
from deploy.weights import name_of, parse_weights, shares_of
from serve.names import parse_version
from serve.registry import Registry
from train.recipe import Recipe

if TYPE_CHECKING:
    from deploy.evaluation import Judgement
    from deploy.pipeline import Outcome

RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", "-r", help="Recipe (YAML); the default one if absent.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value pairs that win over the recipe, such as train.epochs=3.")
]
Force = Annotated[bool, typer.Option(help="Deploy whatever the verdict; this is recorded.")]
GATE_REFUSED = 3


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        epilog="Examples: tenon train recipe.yaml · tenon train recipe.yaml train.epochs=3 lora.rank=16"
    )(train)
    app.command(
        "eval", epilog="Examples: tenon eval support@v1 · tenon eval support@v1 --data questions.jsonl --json"
    )(evaluate)
    app.command(
        epilog="Examples: tenon deploy support@v2 · tenon deploy support@v2 support@v3=10 · "
        "tenon deploy support@v1 --set temperature=0 --max max_tokens=512"
    )(deploy)
    app.command(
        "run",
        epilog="Examples: tenon run · tenon run --data train.csv --test test.csv --name banking train.epochs=2",
    )(run)


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train an adapter and register it as the next version; an unfinished run of the same recipe is resumed."""
    need("train")
    from deploy.pipeline import train_and_register

    settings = settings_of(context)
    with Registry.of(settings) as registry:
        version = train_and_register(settings, recipe_of(context, recipe, overrides or []), registry)
    if as_json:
        print_json({"version": str(version.ref), "digest": version.digest, "run": version.lineage.run})
    else:
        console.print(f"Registered {version.ref}. Prove it with `tenon eval {version.ref}`.")


def evaluate(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="NAME@vN")],
    data: Annotated[
        Path | None, typer.Option(help="Questions with answers; default: the version's held-out split.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only so many questions.")] = None,
    as_json: Json = False,
) -> None:
    """Ask base and adapter the same questions; exits with 3 unless the gate would let the version pass."""
    need("eval")
    from deploy.evaluation import judge
    from deploy.questions import from_data, recorded
    from deploy.serving import wanted

    settings = settings_of(context)
    with Registry.of(settings) as registry:
        found = registry.version(parse_version(version))
        asked = from_data(settings.home, found, data) if data is not None else recorded(found)
        with wanted(registry, found.ref):
            judgement = judge(settings, registry, found, asked, limit=limit)
    if as_json:
        print_json(
            {"verdict": judgement.verdict, "report": str(judgement.report), **judgement.evaluation.to_dict()}
        )
    else:
        show_judgement(judgement)
    raise typer.Exit(0 if judgement.decision.allowed else GATE_REFUSED)


def deploy(
    context: typer.Context,
    versions: Annotated[
        list[str],
        typer.Argument(help="NAME@vN, or several with weights: NAME@v2 NAME@v3=10 gives v3 10 of 100."),
    ],
    alias: Annotated[str | None, typer.Option(help="Name that clients use; default: the adapter's.")] = None,
    sampling: Annotated[
        list[str] | None, typer.Option("--set", help="Sampling default, such as temperature=0.2.")
    ] = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", help="Lowest value that a request may ask for.")
    ] = None,
    maximum: Annotated[
        list[str] | None, typer.Option("--max", help="Highest value that a request may ask for.")
    ] = None,
    forced: Annotated[
        list[str] | None, typer.Option("--fix", help="Value that no request can change, such as seed=1.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset that the sampling defaults begin with, such as balanced.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Move an alias to a version that was proven better, or split its conversations among several."""
    from deploy.serving import split_alias

    settings = settings_of(context)
    policy = policy_of(
        settings, defaults=sampling, minimum=minimum, maximum=maximum, forced=forced, preset=preset
    )
    weights = parse_weights(versions)
    with Registry.of(settings) as registry, step("deploy") as current:
        moved = split_alias(
            registry,
            settings,
            alias or name_of(weights),
            weights,
            sampling=policy,
            force=force,
            say=current.say,
        )
        shares = ", ".join(f"{ref} {share}" for ref, share in shares_of(moved).items())
        current.result = f"alias {moved.name} → {shares or moved.target.ref}" + " (forced)" * moved.forced
    if as_json:
        print_json(
            {
                "alias": moved.name,
                "version": str(moved.target.ref),
                "weights": {str(version.ref): weight for version, weight in moved.targets},
                "previous": moved.previous and str(moved.previous),
            }
        )


def run(
    context: typer.Context,
    overrides: Overrides = None,
    model: Model = None,
    data: Annotated[str | None, typer.Option(help="Training data: a file, or builtin:support.")] = None,
    test: Annotated[
        str | None, typer.Option(help="Held-out questions; default: split from the data.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter.", show_default="support")] = None,
    recipe: RecipeFile = None,
    port: Port = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train an adapter, prove that it beats the base, and deploy it: the whole life in one command."""
    need("train", "eval")
    from deploy.pipeline import run as run_pipeline

    options = given(base=model, name=name, data=data, test=test)
    chosen = recipe_of(context, recipe, [*options, *(overrides or [])])
    settings = settings_to_run(context, model=chosen.base, port=port)
    outcome = run_pipeline(settings, chosen, force=force)
    if as_json:
        print_json(outcome.to_dict())
    else:
        show_outcome(outcome)
    raise typer.Exit(0 if outcome.deployed else GATE_REFUSED)


def recipe_of(context: typer.Context, path: Path | None, overrides: list[str]) -> Recipe:
    """The recipe with ``overrides``; one that names no base is for the base that is served, or that is set."""
    recipe = Recipe.load(path, overrides)
    if "base" in recipe.model_fields_set:
        return recipe
    return Recipe.load(path, [*overrides, *given(base=settings_of(context).model)])


def given(
    *, base: str | None = None, name: str | None = None, data: str | None = None, test: str | None = None
) -> list[str]:
    """Overrides of the recipe for the options that were given, also for empty ones; a value is quoted as in YAML."""
    keys = {"base": base, "name": name, "data.train": data, "data.test": test}
    quoted = {
        key: yaml.safe_dump(value, default_style='"', width=math.inf)
        for key, value in keys.items()
        if value is not None
    }
    return [f"{key}={value.strip()}" for key, value in quoted.items()]


def show_judgement(judgement: "Judgement") -> None:
    """Print the table base vs adapter, what the gate says, and where the report is."""
    from evalsuite.report.table import comparison_table

    console.print()
    for comparison in judgement.evaluation.comparisons:
        console.print(comparison_table(comparison))
        console.print()
    console.print(judgement.decision.reason, style="bold")
    console.print(f"Report: {judgement.report}", soft_wrap=True)


def show_outcome(outcome: "Outcome") -> None:
    """Print the end of a whole run: the judgement and how to use, see and stop what now runs."""
    show_judgement(outcome.judgement)
    ref, url = outcome.version.ref, outcome.url
    console.print()
    if not outcome.deployed:
        console.print(f"Not deployed. Overrule the gate with `tenon deploy {ref} --force`.")
        return
    console.print(f"Gateway: {url}/v1   metrics: {url}/metrics\n", soft_wrap=True)
    for snippet in (curl_snippet, python_snippet):
        lines = snippet(url, ref.name, outcome.sample, keys=outcome.keys, greedy=outcome.greedy)
        console.print(lines, soft_wrap=True)
        console.print()
    if outcome.keys:
        console.print(
            "The gateway asks for a key: set OPENAI_API_KEY to the secret of one (`tenon keys create`)."
        )
    console.print(f"{ref.name} answers as {ref}. Stop everything with `make down`.")
