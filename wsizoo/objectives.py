"""What a training step minimises: the task's loss, further predictions, auxiliary terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError, PluginError
from wsizoo.interfaces import Head, Prediction, SlideOutput

PATCHES = "instances"  # the target of per-patch heads, one label a patch


TaskLoss = Callable[[Tensor, Mapping[str, Tensor]], "Tensor | Mapping[str, Tensor]"]


def training_losses(
    head: Head | None,
    output: SlideOutput,
    slides: Sequence[Bag],
    task_loss: TaskLoss | None = None,
) -> dict[str, Tensor]:
    """Everything to minimise, by name: `task`, further predictions, auxiliary terms.

    The task's loss is called once for the whole batch: with a row of raw outputs a slide, or a row
    a patch of all slides (a per-patch head's mean is over all labelled patches). Each further
    prediction is one more call with its own rows, and counts 1/B. A head that compares slides is
    asked for all slides at once, never for several rows of one: once for their first rows, once for
    their second, ...; the mean counts each call by its rows, so that a slide of fewer rows than
    others is missing in the later ones. A method that weighs the task's loss against its own terms
    says so by `task_weight`.

    Args:
        head: of the model; None: a whole model, of which `task_loss` reads `logits` (or, where
            they are None, `instance_logits`).
        output: of one slide, or packed. slides: those slides, with their targets.
        task_loss: (raw, targets) as `Head.loss` takes -> a number, or several by name (instead of
            `task`); in place of the head's own loss.

    Raises:
        DataError: a target that is not there or does not fit.
    """
    loss = task_loss or _loss_of(head)
    per_patch = output.logits is None if head is None else head.reads == "instances"
    stated = collate(slides)
    if per_patch:
        raw = _filled(output.instance_logits, head, "instance_logits")
        targets = {PATCHES: _patch_labels(stated, output)}
    else:
        raw = _filled(output.logits, head, "logits").reshape(len(slides), -1)  # (B, C)
        targets = {name: value for name, value in stated.items() if name != PATCHES}
    targets = {name: value.to(raw.device) for name, value in targets.items()}
    found = loss(raw, targets)
    terms = dict(found) if isinstance(found, Mapping) else {"task": found}
    if output.task_weight != 1:
        terms = {name: output.task_weight * value for name, value in terms.items()}
    alone = task_loss is not None or not getattr(head, "compares_slides", False)
    for several in _asked_together(output.predictions, alone):
        asked = []
        for p in several.values():
            rows = p.logits.reshape(-1, p.logits.shape[-1])  # (n, C)
            asked.append((rows, _targets_of(p, len(rows), targets, slides, output)))
        total = _total(loss(*_joined(asked))) if alone else _between_slides(loss, asked)
        name, first = next(iter(several.items()))
        terms = merged(terms, {name: first.weight * total * len(several) / len(slides)})
    return merged(terms, output.losses)


def _asked_together(
    predictions: Mapping[str, Prediction], alone: bool
) -> list[dict[str, Prediction]]:
    """Predictions of one call each: one; or the k-th ones of all slides, where they are alike."""
    if alone:
        return [{name: p} for name, p in predictions.items()]
    found: dict[tuple[object, ...], dict[str, Prediction]] = {}
    of_slide: Counter[int] = Counter()
    for name, p in predictions.items():
        alike = of_slide[p.slide], p.weight, type(p.target)
        found.setdefault(alike, {})[name] = p
        of_slide[p.slide] += 1
    return list(found.values())


def _between_slides(loss: TaskLoss, asked: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> Tensor:
    """The loss () of the slides' first rows, of their second, ..., and the mean by rows."""
    rows, targets = _joined(asked)
    place = torch.cat([torch.arange(len(each)) for each, _ in asked])
    total = rows.new_zeros(())
    for i in range(max(len(each) for each, _ in asked)):
        at = (place == i).nonzero()[:, 0]
        value = _total(loss(rows[at], {name: value[at] for name, value in targets.items()}))
        total = total + value * (len(at) / len(rows))
    return total


def _total(value: Tensor | Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(value.values())).sum() if isinstance(value, Mapping) else value


def _joined(
    asked: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows and targets end to end."""
    rows, targets = zip(*asked, strict=True)
    return torch.cat(rows), {n: torch.cat([one[n] for one in targets]) for n in targets[0]}


def collate(slides: Sequence[Bag]) -> dict[str, Tensor]:
    """What all slides state as targets: (B,), or (B, ...); `instances` end to end (N_total,).

    Raises:
        DataError: a slide without a target, or with one that is no number.
    """
    each = [_numbers(bag) for bag in slides]
    shared = [name for name in each[0] if all(name in one for one in each)]
    joined = {}
    for name in shared:
        values = [one[name] for one in each]
        alike = len({value.shape for value in values}) == 1
        if not alike and name != PATCHES:
            shapes = sorted({tuple(value.shape) for value in values})
            raise DataError(f"target '{name}' has several shapes in one batch: {shapes}")
        joined[name] = torch.cat(values) if name == PATCHES else torch.stack(values)
    return joined


def _numbers(bag: Bag) -> dict[str, Tensor]:
    if bag.target is None:
        raise DataError(f"slide '{bag.slide_id}' has no target: Bag(..., target={{'label': 0}})")
    found = {}
    for name, given in bag.target.items():
        try:
            value = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            told = f"slide '{bag.slide_id}': target '{name}' is {given!r:.60}"
            raise DataError(f"{told}, expected a number") from error
        if name == PATCHES and value.shape != (len(bag),):
            raise DataError(
                f"slide '{bag.slide_id}': target '{name}' is {tuple(value.shape)}, expected "
                f"({len(bag)},), one label a patch"
            )
        found[name] = value.reshape(()) if name != PATCHES and value.numel() == 1 else value
    return found


def _patch_labels(stated: Mapping[str, Tensor], output: SlideOutput) -> Tensor:
    """(N_total,) per-patch labels; patches that a selector dropped count as unknown (-1)."""
    if PATCHES not in stated:
        raise DataError("a per-patch head trains on target['instances'], one label a patch")
    labels = stated[PATCHES]
    if output.kept is None:
        return labels
    kept = output.kept.to(labels.device)
    return torch.full_like(labels, -1).index_copy(0, kept, labels[kept])


def _targets_of(
    p: Prediction,
    n: int,
    targets: Mapping[str, Tensor],
    slides: Sequence[Bag],
    output: SlideOutput,
) -> dict[str, Tensor]:
    """Targets of the n rows of one prediction, on its device."""
    device = p.logits.device
    if isinstance(p.target, Mapping):
        return {name: value.to(device) for name, value in p.target.items()}
    if p.target is not None:
        return {PATCHES if PATCHES in targets else "label": p.target.to(device)}
    if PATCHES not in targets:
        own = {name: value[p.slide] for name, value in targets.items()}
        return {name: value.expand(n, *value.shape).to(device) for name, value in own.items()}
    start = sum(len(bag) for bag in slides[: p.slide])
    stop = start + len(slides[p.slide])
    labels = targets[PATCHES][start:stop]
    if n != len(labels) and output.kept is not None:  # rows of the kept patches only
        kept = output.kept[(output.kept >= start) & (output.kept < stop)]
        labels = targets[PATCHES][kept.to(labels.device)]
    return {PATCHES: labels.to(device)}


def _loss_of(head: Head | None) -> TaskLoss:
    if head is None:
        raise DataError("a model without a head has no loss of its own: give a task_loss")
    return head.loss


def merged(terms: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both. Raises PluginError for a name that stands in both: one would not be minimised."""
    for name in more:
        if name in terms:
            raise PluginError(f"two losses of one model are called '{name}': rename one")
    return {**terms, **more}


def _filled(raw: Tensor | None, head: Head | None, field: str) -> Tensor:
    if raw is None:
        whose = "whole model" if head is None else f"{head.task} head"
        raise PluginError(f"the {whose} left '{field}' None, which its loss reads")
    return raw
