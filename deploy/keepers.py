"""What keeps each planned engine up, and watches each planned server."""

from collections.abc import Iterable

from deploy.fleet import PlannedEngine, PlannedServer
from serve.config import Settings
from serve.engine.state import answers_folder, record_file, used_file
from serve.engine.supervisor import Supervisor
from serve.engine.watcher import Watcher
from serve.net import is_local
from serve.registry import Registry
from serve.telemetry import traces_endpoint


def supervisor_of(
    planned: PlannedEngine, settings: Settings, registry: Registry, elsewhere: Iterable[str]
) -> Supervisor:
    """What keeps an engine up; ``elsewhere`` are the digests of all bases."""
    engines, url = planned.engines, planned.url
    traces = traces_endpoint(settings.otlp_endpoint)
    return Supervisor(
        registry,
        planned.base,
        state_file=record_file(settings.state, planned.name),
        log_file=settings.logs / f"{planned.name}.log",
        spec=engines.spec(planned.base, traces, cpu_lora=settings.cpu_lora) if url is None else None,
        engine_url=url,
        limits=engines.limits,
        start_timeout=settings.engine_start_timeout,
        engine_id=planned.engine_id(registry),
        elsewhere=frozenset(elsewhere),
        used_file=used_file(settings.state),
        answers=answers_folder(settings.state),
        announced=registry.shared and url is not None and not is_local(url),
    )


def watcher_of(planned: PlannedServer, settings: Settings) -> Watcher:
    """What tells how a server does that is only asked."""
    server = planned.server
    return Watcher(
        server.base,
        server.url,
        server.names,
        state_file=record_file(settings.state, planned.name),
        engine_id=planned.name,
        max_num_seqs=server.max_num_seqs,
    )
