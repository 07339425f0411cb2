"""``tenon``, and ``python -m deploy``."""

from serve.imports import collector_resting


def main() -> None:
    """Run the command line."""
    with collector_resting():
        from deploy.cli import main as run
    run()


if __name__ == "__main__":
    main()
