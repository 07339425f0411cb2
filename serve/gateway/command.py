"""The gateway's command line: ``python -m serve.gateway``."""

import argparse
import logging
import sys
from collections.abc import Sequence

from serve.config import Settings
from serve.errors import TenonError
from serve.gateway.server import serve
from serve.logs import Format, logging_to_stderr

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal; return the exit code, with one line on stderr when it is not 0."""
    parser = argparse.ArgumentParser(prog="python -m serve.gateway", description="Serve the OpenAI API.")
    parser.add_argument("--home", help="Tenon home (default: TENON_HOME or .tenon)")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    options = parser.parse_args(argv)
    form: Format = "text"
    try:
        settings = Settings.read(home=options.home, host=options.host, port=options.port)
        form = settings.log_format
        with logging_to_stderr(form, settings.log_level):
            serve(settings)
    except TenonError as error:
        return _failed(error, form)
    return 0


def _failed(error: TenonError, form: Format) -> int:
    """Say in one line, after all others, what was wrong."""
    text = error.message + (f" ({error.hint})" if error.hint else "")
    if form == "json":
        with logging_to_stderr(form, "info"):
            logger.error("%s", text)
    else:
        sys.stderr.write(f"gateway: {text}\n")
    return error.exit_code
