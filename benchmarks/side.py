"""Call one function and print what it returns as JSON: `python -m benchmarks.side MODULE FUNCTION ARGUMENTS`."""

from __future__ import annotations

import importlib
import json
import sys


def main(module: str, function: str, arguments: str) -> None:
    """Call the function with a JSON list of arguments."""
    print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
