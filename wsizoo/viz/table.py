"""predictions.csv and run.json: a row of numbers a slide, and what made them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import wsizoo
from wsizoo.errors import DataError
from wsizoo.files import write_csv, write_json
from wsizoo.interfaces import SlideOutput
from wsizoo.model import SlideModel
from wsizoo.viz.classes import read_classes
from wsizoo.viz.predicted import output_files
from wsizoo.weights import weights_digest

PREDICTIONS = "predictions.csv"
RUN = "run.json"
TEXT = ("slide", "predicted", "forced")  # columns that hold no number


class Table:
    """The two files of one folder; rows of earlier calls with the same model stay.

    Args:
        overwrite: begin anew where another model's rows are.

    Raises:
        DataError: the folder holds predictions of another model.
    """

    def __init__(self, out: Path, model: SlideModel, overwrite: bool = False) -> None:
        self.out = out
        self.limits = model.facts.get("limits")
        self.made: dict[str, Any] = {
            "model": model.name,
            "trained": model.trained,
            "weights": weights_digest(model.inference_state()),
            "requires": model.requires.to_json(),
            "classes": list(model.classes),
        }
        self.rows, self.stamps = self._read(overwrite)

    def _read(self, overwrite: bool) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Rows and stamps by slide of earlier calls with the same model."""
        try:
            run = json.loads((self.out / RUN).read_text(encoding="utf-8"))
            if {name: run.get(name) for name in self.made} != self.made:
                if overwrite:
                    return {}, {}
                raise DataError(
                    f"'{self.out}' holds predictions of '{run.get('model')}' with other weights. "
                    "Choose another folder with -o, or replace them: --overwrite"
                )
            with open(self.out / PREDICTIONS, newline="", encoding="utf-8") as file:
                rows = {row["slide"]: _numbers(row) for row in csv.DictReader(file)}
            return rows, dict(run["slides"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}, {}

    def known(
        self, slide: str, digest: str, pictures: bool, force: bool = False
    ) -> dict[str, Path] | None:
        """The files of a slide, if its row rests on these features and nothing is missing.

        Args:
            force: also where the features were not the model's.
        """
        stamp = self.stamps.get(slide)
        if slide not in self.rows or not isinstance(stamp, dict) or stamp.get("digest") != digest:
            return None
        if (pictures and not stamp.get("pictures")) or (stamp.get("forced") and not force):
            return None
        paths = output_files(self.out, slide)
        kinds = stamp.get("files")
        if not isinstance(kinds, list) or not all(k in paths and paths[k].exists() for k in kinds):
            return None
        return {kind: paths[kind] for kind in kinds}

    def add(self, slide: str, row: Mapping[str, Any], stamp: Mapping[str, Any]) -> None:
        """A slide that was predicted; that an earlier call failed on it no longer counts."""
        self.rows[slide] = dict(row)
        self.stamps[slide] = {name: value for name, value in stamp.items() if name != "failed"}

    def fail(self, slide: str, reason: str) -> None:
        """A slide that was not; the row of an earlier call stays, unless that had to be forced."""
        if self.stamps.get(slide, {}).get("forced"):
            self.rows.pop(slide, None)
        self.stamps[slide] = {**self.stamps.get(slide, {}), "failed": reason}

    def write(self) -> None:
        """Both files, slides by name."""
        columns = list(dict.fromkeys(key for row in self.rows.values() for key in row)) or ["slide"]
        write_csv(self.out / PREDICTIONS, [self.rows[name] for name in sorted(self.rows)], columns)
        limits = {"limits": self.limits} if self.limits else {}
        slides = {name: self.stamps[name] for name in sorted(self.stamps)}
        made = {"wsizoo": wsizoo.__version__, **self.made}
        write_json(self.out / RUN, {**made, **limits, "slides": slides})


def prediction_row(model: SlideModel, output: SlideOutput) -> dict[str, Any]:
    """One row of numbers of an output: probabilities and class, or risk and hazards, or a value.

    A model that answers per patch only gives the share of each class, over the patches it read.

    Raises:
        DataError: another number of classes than the model names.
    """
    if output.risk is not None:
        bins = [] if output.hazards is None else output.hazards.tolist()  # Cox's head has none
        hazards = {f"hazard_{i}": _number(h) for i, h in enumerate(bins)}
        return {"risk": _number(output.risk), **hazards}
    if output.value is not None:
        return {"value": _number(output.value)}
    if output.logits is not None:
        found = read_classes(model, output.logits)
        each = zip(found.names, found.probabilities, strict=True)
        columns = {f"prob_{name}": _number(p) for name, p in each}
        return {**columns, "predicted": found.names[int(found.called)]}
    if output.instance_logits is not None:
        found = read_classes(model, output.instance_logits)
        read = found.called if output.kept is None else found.called[output.kept]  # (K,)
        share = torch.bincount(read, minlength=len(found.names)) / max(1, len(read))
        return {f"share_{name}": _number(s) for name, s in zip(found.names, share, strict=True)}
    return {}


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was before it was written. Raises ValueError: a damaged number."""
    return {
        name: value if name in TEXT or not value else float(value) for name, value in row.items()
    }


def _number(value: Any) -> float:
    return float(f"{float(value):.6g}")
