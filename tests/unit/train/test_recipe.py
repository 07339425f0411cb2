from pathlib import Path

import pytest

from serve.errors import RecipeError
from train.recipe import RECIPES, Recipe


def test_default_recipe_file_says_the_defaults_and_every_key() -> None:
    assert Recipe.load("default") == Recipe.load() == Recipe.model_validate({})
    written = Recipe.load(RECIPES / "default.yaml")
    for section in ("data", "lora", "train"):
        assert getattr(written, section).model_fields_set == set(type(getattr(written, section)).model_fields)


def test_all_problems_are_reported_at_once_with_the_nearest_keys() -> None:
    overrides = [
        "train.learing_rate=3",
        "lora.rnk=3",
        "epochs=3",
        "train.batch_size=many",
        "lora.rank=9999",
        "no override",
        "name=Bad Name",
    ]
    with pytest.raises(RecipeError) as caught:
        Recipe.load(None, overrides)
    message = caught.value.message
    for part in (
        "train.learing_rate is no key of a recipe (did you mean train.learning_rate?)",
        "lora.rnk is no key of a recipe (did you mean lora.rank?)",
        "epochs is no key of a recipe (did you mean train.epochs?)",
        "train.batch_size: ",
        "(got 'many')",
        "lora.rank: ",
        "'no override' is no override",
        "name: not a name for an adapter",
    ):
        assert part in message
    assert "default.yaml" in caught.value.hint


def test_a_key_of_another_section_is_found() -> None:
    with pytest.raises(RecipeError, match=r"train\.rank is no key of a recipe \(did you mean lora\.rank\?\)"):
        Recipe.load(None, ["train.rank=8"])


def test_overrides_are_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntrain:\n  epochs: 5\n  batch_size: 4\nlora:\n")
    recipe = Recipe.load(
        file,
        [
            "train.epochs=1.5",
            "train.learning_rate=1e-3",
            "lora.target_modules=[q_proj, v_proj]",
            "data.limit=50",
        ],
    )
    assert (recipe.name, recipe.train.epochs, recipe.train.batch_size) == ("mine", 1.5, 4)
    assert recipe.train.learning_rate == 0.001
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.data.limit == 50


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: [", "is not YAML"),
        ("- a\n- b\n", "holds a list, not keys and values"),
        ("train: 3\n", "train: "),
        ("train:\n  epochs: 1\n  epochs: 2\n", "epochs is given twice"),
        ("name: null\n", "name: "),
        ("train:\n  learning_rate: -1\n", "train.learning_rate: "),
        ("train:\n  learning_rate: .nan\n", "train.learning_rate: "),
        ("? [a]\n: 1\n", "a key must be a word"),
        ("train: {{a: 1}: 2}\n", "a key must be a word"),
        ("train: !!map [a]\n", "is not YAML"),
        ("train:\n  1: 2\n", "train.1 is no key"),
        ("name: 2026-13-01\n", "is not YAML"),
    ],
)
def test_bad_files_say_why(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file)
    assert problem in caught.value.message


def test_an_override_does_not_hide_a_section_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("lora: 3\ndata:\n")
    with pytest.raises(RecipeError, match=r"lora\.rank=8 cannot be set: the recipe's lora holds no keys"):
        Recipe.load(file, ["lora.rank=8"])
    assert Recipe.load(file, ["lora={rank: 8}", "data.limit=50"]).data.limit == 50


def test_an_override_with_a_key_that_is_no_word_is_refused() -> None:
    with pytest.raises(RecipeError, match="a key must be a word"):
        Recipe.load(None, ["train.epochs={[a]: 1}"])


@pytest.mark.parametrize(
    "key",
    [
        *("train.epochs", "train.learning_rate", "train.max_steps", "lora.rank", "name"),
        *("data.seed", "data.max_chars", "data.limit", "data.test_fraction", "data.train"),
    ],
)
def test_true_is_no_number(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key}: true and false are no values for this key"):
        Recipe.load(None, [f"{key}=true"])


@pytest.mark.parametrize("key", ["base", "data.train", "data.test", "data.validation", "data.label_column"])
def test_an_empty_text_is_no_file(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key}: .* at least 1 character"):
        Recipe.load(None, [f"{key}=''"])


def test_a_field_that_no_row_has_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(None, ["data.columns={lable: a, text: 5}"])
    assert (
        "data.columns.lable is no field of a row (did you mean data.columns.label?)" in caught.value.message
    )
    assert "data.columns.text: Input should be a valid string (got 5)" in caught.value.message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rate=x", "or 'auto' (got 'x')"),
        ("data.format=x", "'auto', or 'chat'"),
        ("lora.target_modules=5", "'all-linear', or a valid list (got 5)"),
        ("lora.target_modules=[a b, c d]", "'all-linear'"),
    ],
)
def test_a_key_of_several_kinds_has_one_problem(override: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(None, [override])
    assert caught.value.message.count(override.partition("=")[0]) == 1
    assert words in caught.value.message


def test_switches_take_true_and_false() -> None:
    recipe = Recipe.load(None, ["lora.rslora=true", "train.gradient_checkpointing=false"])
    assert recipe.lora.rslora is True
    assert recipe.train.gradient_checkpointing is False


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "banking.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"did you mean banking\.yaml\?"):
        Recipe.load(tmp_path / "bankin.yaml")
    with pytest.raises(RecipeError, match=r"did you mean default\?"):
        Recipe.load("defualt")
