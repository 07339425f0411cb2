"""``python -m serve.gateway --home DIR --host H --port P`` runs the gateway of one Tenon home."""

import argparse
import logging
import sys
from collections.abc import Sequence

from serve.config import Settings
from serve.errors import TenonError
from serve.gateway.server import serve
from serve.logs import logging_to_stderr

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal; return the exit code, with one line on stderr when it is not 0."""
    parser = argparse.ArgumentParser(prog="python -m serve.gateway", description="Serve the OpenAI API.")
    parser.add_argument("--home", help="Tenon home (default: TENON_HOME or .tenon)")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    options = parser.parse_args(argv)
    try:
        settings = Settings.read(home=options.home, host=options.host, port=options.port)
    except TenonError as error:
        return _failed(error)
    with logging_to_stderr(settings.log_format, settings.log_level):
        try:
            serve(settings)
        except TenonError as error:
            if settings.log_format == "text":
                return _failed(error)
            logger.error("%s%s", error.message, f" ({error.hint})" if error.hint else "")
            return error.exit_code
    return 0


def _failed(error: TenonError) -> int:
    sys.stderr.write(f"gateway: {error.message}" + (f" ({error.hint})" if error.hint else "") + "\n")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
