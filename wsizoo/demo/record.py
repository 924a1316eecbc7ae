"""Make `abmil-demo` anew, the model that comes with the wheel: `make record`."""

from __future__ import annotations

import sys
from pathlib import Path

from wsizoo.demo.run import run_demo, training_facts
from wsizoo.publish import save


def record(folder: str = "wsizoo-demo") -> Path:
    """Run the demo and keep its tumour model in the package."""
    tour = run_demo(folder)
    scored = tour.results[0]
    target = Path(__file__).parent.parent / "models" / "abmil-demo"
    return save(scored.model, target, training=training_facts(scored), overwrite=True)


if __name__ == "__main__":
    sys.stdout.write(f"{record(*sys.argv[1:2])}\n")
