"""``python -m deploy.controller --home DIR`` runs the controller of one Tenon home."""

import sys

from serve.imports import collector_resting

if __name__ == "__main__":
    with collector_resting():
        from deploy.controller.control import main
    sys.exit(main())
