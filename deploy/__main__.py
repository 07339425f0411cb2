"""``tenon``, and ``python -m deploy``."""

import sys

from serve.imports import collector_resting
from serve.interrupts import INTERRUPTED


def main() -> None:
    """Run the command line."""
    try:
        with collector_resting():
            from deploy.cli import main as run
    except KeyboardInterrupt:  # while it is imported: there is nothing to tell, and nothing to undo
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
