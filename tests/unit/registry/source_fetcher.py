"""Fetches one source in a process of its own and prints what came of it as JSON.

usage: source_fetcher.py HOME SOURCE [LIMITS as JSON]
"""

import json
import sys
from pathlib import Path

from serve.imports import collector_resting

with collector_resting():
    from serve.errors import TenonError
    from serve.registry.sources import Limits, fetched


def main(home: str, source: str, limits: str = "{}") -> None:
    try:
        with fetched(source, Path(home), Limits(**json.loads(limits))) as found:
            sizes = {
                str(path.relative_to(found.folder)): path.stat().st_size for path in found.folder.rglob("*")
            }
            print(json.dumps({"origin": found.origin, "sizes": sizes}))
    except TenonError as error:
        print(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}))


if __name__ == "__main__":
    main(*sys.argv[1:])
