"""``python -m serve.gateway --home DIR --host H --port P`` runs the gateway of one Tenon home."""

import argparse
import logging
import sys
from collections.abc import Sequence

from serve.config import Settings
from serve.errors import TenonError
from serve.gateway.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal; return the exit code, with one line on stderr when it is not 0."""
    parser = argparse.ArgumentParser(prog="python -m serve.gateway", description="Serve the OpenAI API.")
    parser.add_argument("--home", help="Tenon home (default: TENON_HOME or .tenon)")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    options = parser.parse_args(argv)
    try:
        settings = Settings.read(home=options.home, host=options.host, port=options.port)
        logging.basicConfig(
            level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        serve(settings)
    except TenonError as error:
        sys.stderr.write(f"gateway: {error.message}" + (f" ({error.hint})" if error.hint else "") + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
