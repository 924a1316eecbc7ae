"""`python -m benchmarks [NAME...]`: run every benchmark (or those named) and print its ratios."""

import importlib
import pkgutil
import sys
from pathlib import Path


def main(names: list[str]) -> None:
    found = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])]
    known = sorted(name for name in found if not name.startswith("_"))
    for name in names:
        if name not in known:
            sys.exit(f"No benchmark '{name}'. There are: {', '.join(known)}")
    for name in names or known:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"{name}: {module.__doc__.splitlines()[0]}")
        module.run()
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
