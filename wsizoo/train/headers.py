"""Feature files before a training: is each there, whole, not empty, and what the model reads?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.inspection import Inspection, inspect
from wsizoo.model import SlideModel
from wsizoo.train.cohort import Cohort
from wsizoo.train.loop import common_fingerprint

MOST_NAMED = 20


def check_features(model: SlideModel, cohort: Cohort) -> Fingerprint:
    """What the model is to require of features, once it has been trained on these.

    Raises:
        DataError: files that are damaged, empty or of another width, all named at once; some that
            do not say what made them, among others that do.
        FingerprintError: made by another encoder than the model's, or by several.

    Cost: coordinates are read, features are not.
    """
    found = [inspect(record.file, cohort.reading) for record in cohort.records]
    slides = cohort.slides
    wrong = [
        f"slide '{slide}' ({one.path}): {why}"
        for slide, one in zip(slides, found, strict=True)
        if (why := _why_not(model, one))
    ]
    if wrong:
        more = [f"and {len(wrong) - MOST_NAMED} more"] if len(wrong) > MOST_NAMED else []
        told = "\n  ".join([*wrong[:MOST_NAMED], *more])
        raise DataError(
            f"{len(wrong)} of {len(found)} feature files cannot be trained on:\n  {told}\n"
            "Extract them again, or leave their slides out of the table"
        )
    return common_fingerprint(model, _empty_bags(slides, found))


def _why_not(model: SlideModel, found: Inspection) -> str:
    if not found.complete:
        return found.reason
    if not found.n:
        return "it holds no patches"
    if found.is_embedding:
        return "it holds one vector of a whole slide, no patches"
    if found.dim is not None and found.dim != model.in_dim:
        of = f" of {model.requires.encoder}" if model.requires.encoder else ""
        return f"features of width {found.dim}, '{model.name}' reads{of} width {model.in_dim}"
    return ""


def _empty_bags(slides: Sequence[str], found: Sequence[Inspection]) -> list[Bag]:
    """Bags that hold nothing but who made their features."""
    return [
        Bag(
            torch.empty(0, one.dim or 1),
            encoder=None if one.fingerprint is None else Fingerprint.from_json(one.fingerprint),
            slide_id=slide,
        )
        for slide, one in zip(slides, found, strict=True)
    ]
