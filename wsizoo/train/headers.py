"""Feature files before a training: is each there, whole, not empty, and what the model reads?"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Sequence

import torch

from wsizoo.bag import Bag
from wsizoo.errors import DataError, FingerprintError
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.inspection import Inspection, inspect
from wsizoo.model import SlideModel
from wsizoo.train.cohort import Cohort
from wsizoo.train.loop import common_fingerprint
from wsizoo.train.problems import some

MOST_NAMED = 20
BARE = ("npy", "pt")  # formats that say nothing of themselves


def check_features(model: SlideModel, cohort: Cohort, untrained: bool = False) -> Fingerprint:
    """What the model is to require of features, once it has been trained on these.

    Args:
        untrained: the model may as well be built for another encoder.

    Raises:
        DataError: files that are damaged, empty or of another width, all at once, a line a reason;
            some that do not say what made them, among others that do.
        FingerprintError: made by another encoder than the model's, or by several.

    Cost: coordinates are read, features are not.
    """
    found = _headers(cohort)
    slides = cohort.slides
    wrong: dict[str, list[str]] = {}
    for slide, one in zip(slides, found, strict=True):
        if why := _why_not(model, one, cohort.reading.format):
            wrong.setdefault(why, []).append(f"'{slide}' ({one.path})")
    if wrong:
        lines = [
            f"{f'{len(those)} slides, first' if len(those) > 1 else 'slide'} {those[0]}: {why}"
            for why, those in wrong.items()
        ]
        more = [f"and {len(lines) - MOST_NAMED} more"] if len(lines) > MOST_NAMED else []
        told = "\n  ".join([*lines[:MOST_NAMED], *more])
        raise DataError(
            f"{sum(map(len, wrong.values()))} of {len(found)} feature files cannot be trained on:\n"
            f"  {told}\n{_mend(model, found, untrained)}"
        )
    try:
        return common_fingerprint(model, _empty_bags(slides, found))
    except (FingerprintError, DataError) as error:
        hint = _mend_encoder(model, found, untrained) or _by_encoder(slides, found)
        if hint:
            raise type(error)(f"{error}. {hint}") from None
        raise


def _by_encoder(slides: Sequence[str], found: Sequence[Inspection]) -> str:
    """Whose features all slides have, where that is not one encoder."""
    makers: dict[str, list[str]] = {}
    for slide, one in zip(slides, found, strict=True):
        makers.setdefault((one.fingerprint or {}).get("encoder") or "no encoder", []).append(slide)
    told = [f"{len(names)} state {maker} ({some(names)})" for maker, names in makers.items()]
    return f"Of all slides: {'; '.join(told)}" if len(makers) > 1 else ""


@functools.lru_cache(maxsize=1)
def _headers(cohort: Cohort) -> list[Inspection]:
    """Of every slide; looked at once for all folds and seeds."""
    return [inspect(record.file, cohort.reading) for record in cohort.records]


def _why_not(model: SlideModel, found: Inspection, stated: str | None) -> str:
    if not found.complete:
        return found.reason
    if found.format in BARE and stated is None:
        return f"it is a bare array, if of features (N, D) say so: data.format={found.format}"
    if not found.n:
        return "it holds no patches"
    if found.is_embedding:
        return "it holds one vector of a whole slide, no patches"
    if found.dim is not None and found.dim != model.in_dim:
        of = f" of {model.requires.encoder}" if model.requires.encoder else ""
        return f"features of width {found.dim}, '{model.name}' reads{of} width {model.in_dim}"
    return ""


def _mend(model: SlideModel, found: Sequence[Inspection], untrained: bool) -> str:
    """What to type: where all are of one other width, the encoder to build the model for."""
    made = {((one.fingerprint or {}).get("encoder"), one.dim) for one in found if one.n}
    encoder, dim = next(iter(made), (None, None))
    if len(made) > 1 or dim in (None, model.in_dim):
        return "Extract them again, or leave their slides out of the table"
    if not untrained:
        whose = model.requires.encoder or f"width {model.in_dim}"
        return f"'{model.name}' is trained, it needs features of {whose}: extract them"
    return f"To build the model for these features, add: {_built_for(encoder, dim)}"


def _mend_encoder(model: SlideModel, found: Sequence[Inspection], untrained: bool) -> str:
    """The same for features of the model's width; "" where it needs what it was trained on."""
    made = {((one.fingerprint or {}).get("encoder"), one.dim) for one in found}
    encoder, dim = next(iter(made))
    if not untrained or len(made) > 1 or encoder == model.requires.encoder:
        return ""
    typed = _built_for(encoder, dim)
    declared = any((one.fingerprint or {}).get("declared") for one in found)
    other = f". If data.encoder={encoder} is a slip, state what made them" if declared else ""
    return f"Or build this one for yours, add: {typed}{other}"


def _built_for(encoder: str | None, dim: int | None) -> str:
    """The override of a run that builds its model for an encoder, to be typed in a shell."""
    use = f"encoder={{name: {encoder or 'ENCODER'}, dim: {dim}}}"
    texts = json.dumps([use], ensure_ascii=False)
    return shlex.quote(f"overrides={texts}")


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
