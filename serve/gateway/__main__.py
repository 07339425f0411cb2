"""``python -m serve.gateway --home DIR --host H --port P`` runs the gateway of one Tenon home."""

import sys

from serve.imports import collector_resting

if __name__ == "__main__":
    with collector_resting():
        from serve.gateway.command import main
    sys.exit(main())
