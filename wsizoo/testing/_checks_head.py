"""Conformance checks of heads alone."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.interfaces import Aggregated, Task
from wsizoo.testing._subject import (
    CheckError,
    Subject,
    check_finite,
    check_same,
    raw_outputs,
    require,
    rows_of_targets,
)

SHAPES = {"logits": "C", "hazards": "C", "risk": "", "value": "", "instance_logits": "C"}
EXTREME = 1e4
STEPS = 60


def check_task(subject: Subject) -> None:
    """The trainer chooses metrics and targets by the task."""
    task, reads = getattr(subject.cls, "task", None), subject.cls.reads
    require(task in get_args(Task), f"task is {task!r}, expected one of {get_args(Task)}")
    require(reads in ("slide", "instances"), f"reads is {reads!r}, expected 'slide' or 'instances'")
    per_patch = task == "segmentation"
    require((reads == "instances") == per_patch, f"a {task} head reads {reads!r}")


def check_outputs_named(subject: Subject) -> None:
    """Outputs become fields of SlideOutput, the raw ones among them."""
    head = subject.make()
    raw, rows = _raw(subject, head), subject.cls.reads == "instances"
    outputs = head.outputs(raw)
    unknown = sorted(set(outputs) - set(SHAPES))
    require(not unknown, f"outputs() names {unknown}, expected only {sorted(SHAPES)}")
    name = "instance_logits" if rows else "logits"
    require(
        name in outputs and torch.equal(outputs[name], raw), f"outputs() lacks the raw '{name}'"
    )
    wrong = "instance_logits" if not rows else "logits"
    require(wrong not in outputs, f"a head that reads {subject.cls.reads} fills '{wrong}'")
    for field, value in outputs.items():
        leading = raw.shape[:-1]
        expected = (*leading, head.n_outputs) if SHAPES[field] else tuple(leading)
        require(
            tuple(value.shape) == expected, f"{field} is {tuple(value.shape)}, expected {expected}"
        )


def _raw(subject: Subject, head: Any, scale: float = 1.0) -> Tensor:
    rows = raw_outputs(head, scale=scale)
    return rows if subject.cls.reads == "instances" else rows[0]


def check_outputs_batched(subject: Subject) -> None:
    """Packed slides come with a leading dimension, which changes nothing."""
    head = subject.make()
    raw = torch.randn(4, head.n_outputs, generator=torch.Generator().manual_seed(2))
    singles = [head.outputs(row) for row in raw]
    expected = {name: torch.stack([single[name] for single in singles]) for name in singles[0]}
    check_same(head.outputs(raw), expected, "outputs of (4, n_outputs)")


def check_loss_scalar(subject: Subject) -> None:
    """A batch has one loss, finite and with a gradient, however extreme the raw outputs."""
    for scale in (1.0, EXTREME):
        head = subject.make()
        raw = raw_outputs(head, scale=scale).requires_grad_()
        loss = head.loss(raw, rows_of_targets(5))
        require(loss.shape == (), f"the loss is {tuple(loss.shape)}, expected ()")
        check_finite({"the loss": loss}, f"raw outputs of size {scale:g}")
        require(loss.requires_grad, "the loss does not depend on the raw outputs")
        loss.backward()
        assert raw.grad is not None
        check_finite({"its gradient": raw.grad}, f"raw outputs of size {scale:g}")


def check_loss_of_rows(subject: Subject) -> None:
    """The loss of a batch is the mean over its rows; one that compares slides declares it."""
    head = subject.make()
    raw, given = raw_outputs(head, 4), rows_of_targets(4)
    each = [
        head.loss(raw[i : i + 1], {name: value[i : i + 1] for name, value in given.items()})
        for i in range(4)
    ]
    expected = torch.stack(each).mean()
    check_same({"loss": head.loss(raw, given)}, {"loss": expected}, "the loss of four rows")


def check_loss_points_to_target(subject: Subject) -> None:
    """Minimising the loss must move the outputs towards the target."""
    head = subject.make()
    given = rows_of_targets(5)
    outputs, losses = _minimised(head, raw_outputs(head), given)
    require(
        losses[1] < losses[0],
        f"{STEPS} steps downhill take the loss from {losses[0]} to {losses[1]}",
    )
    if "value" in outputs:
        off = float((outputs["value"] - given["value"]).abs().max())
        require(off < 0.1, f"values stay {off:.3g} from their targets")
    if subject.cls.task in ("classification", "segmentation"):
        name = "logits" if subject.cls.task == "classification" else "instance_logits"
        rows = outputs[name]
        if rows.shape[-1] == 1:  # one logit for two classes: that of the first is 0
            rows = torch.nn.functional.pad(rows, (1, 0))
        found = rows.argmax(-1)
        told = f"the largest of {name} are {found.tolist()}, the labels {given['label'].tolist()}"
        require(torch.equal(found, given["label"]), told)


def _minimised(
    head: Any, raw: Tensor, target: Any
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Outputs after gradient descent on the raw outputs, and the loss before and after."""
    raw = raw.clone().requires_grad_()
    first = last = float(head.loss(raw, target).detach())
    for _ in range(STEPS):
        (slope,) = torch.autograd.grad(head.loss(raw, target), raw)
        raw = (raw - slope * raw.shape[0] * 0.3).detach().requires_grad_()
        last = float(head.loss(raw, target).detach())
    return head.outputs(raw.detach()), (first, last)


def check_risk_larger_is_worse(subject: Subject) -> None:
    """Everything downstream reads a larger risk as an earlier event."""
    head = subject.make()
    if "risk" not in head.outputs(_raw(subject, head)):
        return
    last = max(1, head.n_outputs - 1)
    given = {"time": torch.tensor([0, last]), "event": torch.tensor([1, 0])}
    early, late = _minimised(head, raw_outputs(head, 2), given)[0]["risk"].tolist()
    require(early > late, f"risk of an early event {early:.3g}, of none {late:.3g}")


def check_missing_target_refused(subject: Subject) -> None:
    """A target of another task is the user's mistake, and is named."""
    head = subject.make()
    try:
        head.loss(raw_outputs(head), {})
    except DataError:
        return
    except Exception as error:
        raise CheckError(f"an empty target raises {error!r}, expected DataError") from error
    raise CheckError("a loss without any target, expected DataError")


def check_unknown_labels_left_out(subject: Subject) -> None:
    """Patches without a label (-1), among them those a selector dropped, teach nothing."""
    if subject.cls.reads != "instances":
        return
    head = subject.make()
    raw, labels = raw_outputs(head), torch.tensor([0, -1, 1, -1, 1])
    known = labels >= 0
    got = head.loss(raw, {"instances": labels})
    expected = head.loss(raw[known], {"instances": labels[known]})
    check_same({"loss": got}, {"loss": expected}, "the loss with two unknown labels")


def check_works_without_own_classifier(subject: Subject) -> None:
    """in_dim = None: the aggregator fills the logits, the head only names them."""
    head = subject.make(in_dim=None)
    require(head.n_outputs == subject.make().n_outputs, "n_outputs depends on in_dim")
    raw = _raw(subject, head)
    rows = subject.cls.reads == "instances"
    check_same(
        head(Aggregated(instance_logits=raw) if rows else Aggregated(logits=raw)),
        head.outputs(raw),
        "with in_dim=None and an aggregator's logits",
    )


HEAD = (
    check_task,
    check_outputs_named,
    check_outputs_batched,
    check_loss_scalar,
    check_loss_of_rows,
    check_loss_points_to_target,
    check_risk_larger_is_worse,
    check_missing_target_refused,
    check_unknown_labels_left_out,
    check_works_without_own_classifier,
)
