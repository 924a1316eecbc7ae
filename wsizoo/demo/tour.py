"""What the guided tour finds, step by step: everything that its report shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsizoo.demo.cohort import CohortSlide
from wsizoo.extraction.job import Extracted
from wsizoo.inference import Predicted
from wsizoo.measures.metrics import auc_interval, roc_auc, roc_curve
from wsizoo.model import SlideModel

ENCODER = "handcrafted-he"
CLASSES = {"tumour": ("normal", "tumour"), "clustered": ("scattered", "clustered")}
COLUMNS = ("label", "aggregator", "test slides", "AUC", "95 % interval", "accuracy")


@dataclass
class Scored:
    """One model on the held-out slides.

    Args:
        truth: (n,) 0 or 1. scores: (n,) logit difference, larger means 1. predicted: (n,) 0 or 1.
    """

    label: str
    aggregator: str
    model: SlideModel
    losses: list[float]
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]
    predicted: NDArray[np.int64]

    @property
    def auc(self) -> float:
        return roc_auc(self.truth, self.scores)

    def row(self) -> dict[str, object]:
        low, high = auc_interval(self.truth, self.scores)
        return {
            "label": self.label,
            "aggregator": self.aggregator,
            "test slides": len(self.truth),
            "AUC": f"{self.auc:.3f}",
            "95 % interval": f"{low:.3f} to {high:.3f}",
            "accuracy": f"{(self.truth == self.predicted).mean():.3f}",
        }

    def curve(self) -> tuple[str, list[float], list[float], float]:
        fpr, tpr = roc_curve(self.truth, self.scores)
        return f"{self.label}: {self.aggregator}", fpr.tolist(), tpr.tolist(), self.auc


@dataclass(frozen=True)
class Located:
    """How well the scores of one slide's patches find the tumour that was drawn in it.

    Args:
        auc: chance that a patch with tumour on half of it or more scores above one with none.
        tumour, without: numbers of such patches; those in between are left out.
    """

    slide: str
    auc: float
    tumour: int
    without: int

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f} ({self.tumour} patches with tumour, {self.without} without)"


@dataclass
class Tour:
    """Everything the report shows."""

    folder: Path
    cohort: list[CohortSlide]
    extracted: list[Extracted] = field(default_factory=list)
    results: list[Scored] = field(default_factory=list)
    predicted: Predicted | None = None
    located: Located | None = None
    compared: list[dict[str, object]] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - start
