"""Conformance checks of parts that take a Bag: aggregators, selectors and whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import BagError
from wsizoo.interfaces import Aggregated, Prediction, Selected, SlideOutput
from wsizoo.testing._subject import (
    N_OUTPUTS,
    N_PATCHES,
    PER_ROW,
    SPACING,
    CheckError,
    Subject,
    check_different,
    check_finite,
    check_same,
    evaluate,
    require,
    seeded,
    training_scalar,
)

RETURNS: dict[str, type] = {"aggregator": Aggregated, "selector": Selected, "model": SlideOutput}
NEAR_SHIFT = (7, 13)  # cells; odd, so that no pooling window stays aligned
FAR_SHIFT = (70_001, 65_536)  # cells; beyond 16 bits
LARGE_FEATURE = 1e4


def both_modes(subject: Subject, bag: Bag | None = None) -> list[tuple[str, Any]]:
    """What the part returns in eval and in training mode, with the mode's name."""
    module = subject.awake()
    given = subject.bag() if bag is None else bag
    with seeded(0):
        return [("eval", module.eval()(given)), ("training", module.train()(given))]


def check_return_type(subject: Subject) -> None:
    """What a part returns never depends on a flag or a mode: always one type."""
    expected = RETURNS[subject.kind]
    for mode, output in both_modes(subject):
        got = type(output).__name__
        require(
            isinstance(output, expected),
            f"in {mode} it returns {got}, expected {expected.__name__}",
        )


def check_one_patch(subject: Subject) -> None:
    """Small biopsies: one patch, where every neighbourhood and every deviation is empty."""
    _check_runs(subject, subject.bag(1))


def check_two_patches(subject: Subject) -> None:
    """Two patches: fewer than any window, cluster count or top-k expects."""
    _check_runs(subject, subject.bag(2))


def check_odd_count(subject: Subject) -> None:
    """A prime number of patches divides into no blocks, groups or squares."""
    _check_runs(subject, subject.bag(61))


def check_large_count(subject: Subject) -> None:
    """A resection: many patches, more than any fixed buffer or position table."""
    _check_runs(subject, subject.bag(subject.large()))


def check_far_islands(subject: Subject) -> None:
    """Tissue pieces lie anywhere: cells beyond 16 bits neither overflow nor collide."""
    island = subject.bag(10).coords
    assert island is not None
    shifts = torch.tensor([[0, 0], [65_536, 0], [0, 65_536], [131_072, 65_536]])  # 0 in 16 bits
    coords = torch.cat([island + shift * int(SPACING) for shift in shifts])
    far = subject.bag(40).replace(coords=coords)
    _check_runs(subject, far)
    if not getattr(subject.cls, "order_matters", False):
        module = subject.awake()
        expected = evaluate(subject, module, far)
        order = torch.arange(39, -1, -1)
        permuted = evaluate(subject, module, far.subset(order))
        check_same(
            _rows(permuted), _rows(_reordered(expected, order)), "far islands in another order", 10
        )


def _check_runs(subject: Subject, bag: Bag) -> None:
    """Both modes run, and forward and backward pass are finite."""
    module = subject.awake()
    check_finite(evaluate(subject, module, bag), f"{len(bag)} patches in eval")
    with seeded(0):
        scalar = training_scalar(subject, module, bag)
    check_finite({"the sum of all outputs": scalar}, f"{len(bag)} patches in training")
    if scalar.requires_grad:
        scalar.backward()  # type: ignore[no-untyped-call]
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            check_finite({f"gradient of {name}": parameter.grad}, f"{len(bag)} patches")


def check_finite_extremes(subject: Subject) -> None:
    """Blank, saturated and enormous features: no exponential overflows, no variance is zero."""
    bag = subject.bag()
    f = bag.features
    scale = 255 if subject.reads_pixels else LARGE_FEATURE
    extremes = {
        "all zero": torch.zeros_like(f),
        "all equal": torch.full_like(f, scale),
        "large": f if subject.reads_pixels else f * LARGE_FEATURE,
    }
    for name, features in extremes.items():
        try:
            _check_runs(subject, bag.replace(features=features))
        except CheckError as error:
            raise CheckError(f"features {name}: {error}") from error


def check_bag_unchanged(subject: Subject) -> None:
    """The bag belongs to the caller, who reads and shows it afterwards."""
    for mode in (False, True):
        module = subject.awake().train(mode)
        bag = subject.bag()
        assert bag.coords is not None
        now = bag.features, bag.coords, bag.grid()
        before = [tensor.clone() for tensor in now]
        module(bag)
        same = all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
        where = "training" if mode else "eval"
        require(same, f"in {where} it writes into the bag's tensors; work on a copy")


def check_eval_ignores_target(subject: Subject) -> None:
    """The target is for training only; an answer that reads it is worthless."""
    module, bag = subject.awake(), subject.bag()
    expected = evaluate(subject, module, bag)
    try:
        check_same(
            evaluate(subject, module, bag.replace(target=None)), expected, "without the target"
        )
    except CheckError:
        raise
    except Exception as error:
        raise CheckError(f"without a target it fails in eval: {error!r}") from error
    other = {**(bag.target or {}), "label": 0, "instances": torch.ones(len(bag), dtype=torch.int64)}
    check_same(
        evaluate(subject, module, bag.replace(target=other)), expected, "with another target"
    )


def check_losses(subject: Subject) -> None:
    """Auxiliary losses are numbers () by name, in training only, for the trainer to add."""
    (_, quiet), (_, output) = both_modes(subject)
    require(not quiet.losses, f"in eval it returns losses {sorted(quiet.losses)}, expected none")
    for name, loss in output.losses.items():
        require(
            isinstance(loss, Tensor) and loss.shape == () and loss.is_floating_point(),
            f"losses['{name}'] is {_told(loss)}, expected a float tensor of shape ()",
        )
        check_finite({name: loss}, "losses")


def check_predictions(subject: Subject) -> None:
    """The trainer applies the task's loss to predictions, so their shapes are fixed."""
    (_, quiet), (_, output) = both_modes(subject)
    require(not quiet.predictions, f"in eval it returns predictions {sorted(quiet.predictions)}")
    width = N_OUTPUTS
    if subject.kind == "model" and output.predictions:
        raw = output.instance_logits if output.logits is None else output.logits
        require(raw is not None, "it gives predictions, but neither logits nor instance_logits")
        width = raw.shape[-1]
    for name, p in output.predictions.items():
        require(
            isinstance(p, Prediction), f"predictions['{name}'] is {_told(p)}, expected Prediction"
        )
        shape = tuple(p.logits.shape)
        require(
            shape[-1:] == (width,) and len(shape) in (1, 2),
            f"predictions['{name}'] has logits {shape}, expected (C,) or (n, C) with C = {width}",
        )
        n = shape[0] if len(shape) == 2 else 1
        given = p.target if isinstance(p.target, Mapping) else {"target": p.target}
        for key, rows in given.items():
            fits = isinstance(rows, Tensor) and tuple(rows.shape[:1]) == (n,)
            require(
                p.target is None or fits,
                f"predictions['{name}'] has {n} rows of logits and as {key} {_told(rows)}, "
                f"expected a tensor of {n} rows, or no target: the slide's own",
            )
        weight = float(p.weight)
        require(0 <= weight < float("inf"), f"predictions['{name}'] has weight {weight}")
        require(p.slide == 0, f"predictions['{name}'] names slide {p.slide} of one bag, expected 0")


def _told(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)


def check_scores_aligned(subject: Subject) -> None:
    """Heatmaps draw scores[i] on patch i of the bag that was passed in; groups are its too."""
    for mode, output in both_modes(subject):
        scores, groups = output.scores, getattr(output, "groups", None)
        require(
            groups is None or (groups.shape == (N_PATCHES,) and groups.dtype == torch.int64),
            f"in {mode}, groups are {_told(groups)}, expected ({N_PATCHES},) int64, one a patch",
        )
        if scores is None:
            continue
        require(
            isinstance(scores, Tensor)
            and scores.shape == (N_PATCHES,)
            and scores.is_floating_point(),
            f"in {mode}, scores are {_told(scores)}, expected ({N_PATCHES},) float, one a patch",
        )


def check_scores_belong_to_their_call(subject: Subject) -> None:
    """Scores may be computed late, but from their own slide, however many ran since."""
    module = subject.awake()
    with torch.no_grad():
        first = module(subject.bag())
        module(subject.bag(12, seed=1))
        late = first.scores
        prompt = module(subject.bag()).scores
    if prompt is not None:
        require(late is not None, "scores asked for late are gone")
        require(late is first.scores, "scores are computed again at every access")
        check_same({"scores": late}, {"scores": prompt}, "scores asked for after another slide")


def check_permutation_as_declared(subject: Subject) -> None:
    """The order of patches in a file means nothing, unless `order_matters` says so."""
    module, bag = subject.awake(), subject.bag()
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(7))
    expected = _rows(_reordered(evaluate(subject, module, bag), order))
    permuted = _rows(evaluate(subject, module, bag.subset(order)))
    if getattr(subject.cls, "order_matters", False):
        message = "order_matters = True, but permuting the rows changes nothing"
        check_different(permuted, expected, message)
    else:
        check_same(permuted, expected, "rows permuted (order_matters = False)", 3)


def _reordered(values: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    n = len(order)
    return {
        name: value[order] if name in PER_ROW and len(value) == n else value
        for name, value in values.items()
    }


def _rows(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what a selector hands on, whose order is that of the bag."""
    return {k: value for k, value in values.items() if k not in ("handed_on", "weights")}


def check_coords_as_declared(subject: Subject) -> None:
    """What bags are refused without, by `uses_coords` and `uses_spacing`, is what it uses."""
    module, bag = subject.awake(), subject.bag()
    assert bag.coords is not None
    expected = evaluate(subject, module, bag)
    cells = torch.randperm(100, generator=torch.Generator().manual_seed(8))[: len(bag)]
    elsewhere = torch.stack([cells % 10, cells // 10], 1) + torch.tensor([40, 25])  # (N, 2)
    rearranged = evaluate(subject, module, bag.replace(coords=elsewhere * int(SPACING)))
    without = bag.replace(coords=None, spacing=None, footprint=None)
    if getattr(subject.cls, "uses_coords", False):
        message = "uses_coords = True, but rearranging the patches changes nothing"
        check_different(rearranged, expected, message)
        if not getattr(subject.cls, "uses_spacing", True):
            unspaced = evaluate(subject, module, bag.replace(spacing=None, footprint=None))
            check_same(unspaced, expected, "without spacing (uses_spacing = False)")
        try:
            evaluate(subject, module, without)
        except BagError:
            return
        raise CheckError("uses_coords = True, but a bag without coords is not refused: bag.grid()")
    check_same(rearranged, expected, "patches rearranged (uses_coords = False)")
    try:
        check_same(
            evaluate(subject, module, without), expected, "without coords (uses_coords = False)"
        )
    except BagError as error:
        raise CheckError(
            f"uses_coords = False, but a bag without coords is refused: {error}"
        ) from error


def check_translation_as_declared(subject: Subject) -> None:
    """Where a slide lies on its scanner means nothing, unless `absolute_coords` says so."""
    module, bag = subject.awake(), subject.bag()
    assert bag.coords is not None
    expected = evaluate(subject, module, bag)
    for shift in (NEAR_SHIFT, FAR_SHIFT):
        offset = torch.tensor(shift) * int(SPACING)
        shifted = evaluate(subject, module, bag.replace(coords=bag.coords + offset))
        if getattr(subject.cls, "absolute_coords", False):
            message = (
                f"absolute_coords = True, but moving the slide by {shift} cells changes nothing"
            )
            check_different(shifted, expected, message)
        else:
            check_same(
                shifted, expected, f"slide moved by {shift} cells (absolute_coords = False)", 3
            )


def check_gradients_reach_features(subject: Subject) -> None:
    """A trainable selector or encoder before this part learns through the features."""
    if subject.reads_pixels:
        return
    bag = subject.bag()
    features = bag.features.clone().requires_grad_()
    with seeded(0):
        scalar = training_scalar(subject, subject.awake(), bag.replace(features=features))
    require(scalar.requires_grad, "in training mode no output depends on the features")
    scalar.backward()  # type: ignore[no-untyped-call]
    require(features.grad is not None, "in training mode no gradient reaches the features")
    assert features.grad is not None
    require(bool((features.grad != 0).any()), "in training mode the features' gradient is zero")


SIZES = (
    check_one_patch,
    check_two_patches,
    check_odd_count,
    check_large_count,
    check_far_islands,
    check_finite_extremes,
)
BAG = (
    check_return_type,
    *SIZES,
    check_bag_unchanged,
    check_eval_ignores_target,
    check_losses,
    check_scores_aligned,
    check_scores_belong_to_their_call,
    check_permutation_as_declared,
    check_gradients_reach_features,
)
PLACE = (check_coords_as_declared, check_translation_as_declared, check_predictions)
