"""What the demo leaves for a first `wsizoo train`: a table of its slides, and a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsizoo.demo.cohort import CohortSlide
from wsizoo.demo.tour import CLASSES
from wsizoo.files import write_csv, write_text

TABLE, CONFIG = "table.csv", "train.yaml"
TEXT = """\
# A first training run, on the synthetic slides beside this file (no tissue, no patient):
#
#   wsizoo train {folder}/{config} -o RUN
#
# Every key, and its default: docs/recipes.md. Another label:
#
#   wsizoo train {folder}/{config} -o RUN2 data.label=clustered \\
#     "data.classes=[scattered,clustered]"
recipe: baseline-classification
model: abmil-demo # built with random weights
data:
  table: {table}
  features: features
  label: tumour
  classes: [normal, tumour]
split: {{kind: column, column: part, val_fraction: 0.25}} # train and test; val is cut from train
optimiser: {{lr: 1.0e-3}} # ten times the recipe's: few slides make few steps
train: {{epochs: 30}}
selection: {{metric: loss}}
"""


def write_first_run(folder: Path, cohort: Sequence[CohortSlide]) -> Path:
    """Write `table.csv` (slide, patient, part, tumour, clustered) and `train.yaml`.

    Every slide is of a patient of its own. Labels are names of classes.

    Returns:
        The config.
    """
    rows = [
        {
            "slide": slide.name,
            "patient": f"patient-{number:02d}",
            "part": slide.part,
            **{label: names[getattr(slide, label)] for label, names in CLASSES.items()},
        }
        for number, slide in enumerate(cohort)
    ]
    write_csv(folder / TABLE, rows, ["slide", "patient", "part", *CLASSES])
    text = TEXT.format(folder=folder.as_posix(), config=CONFIG, table=TABLE)
    write_text(folder / CONFIG, text)
    return folder / CONFIG
