"""The program of a contender's rank: connects its library, then serves the benchmark.

Run as a script, with its arguments as one JSON object, by whatever Python has the library; numpy
and that library are all it needs. There the package `collectives` need not be installed: it is
loaded from the folder that this file lies in, and nothing else of what lies beside it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any

PACKAGE = "collectives"


def load_package(folder: Path) -> None:
    """Makes `import collectives` mean the package in `folder`."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def run_rank(options: dict[str, Any]) -> int:
    """Connects and serves; returns the exit code."""
    from collectives.bench.cases import NotCarried
    from collectives.bench.serving import brief, dial, say, serve

    stream = dial(options["address"])
    try:
        module = importlib.import_module(f"collectives.bench.libraries.{options['library']}")
        library = module.connect(options)
    except (Exception, NotCarried) as error:
        traceback.print_exc()
        say(stream, failed=brief(error))
        return 1
    serve(library, stream, options["cache_bytes"])
    return 0


if __name__ == "__main__":
    load_package(Path(__file__).parents[1])
    sys.exit(run_rank(json.loads(sys.argv[1])))
