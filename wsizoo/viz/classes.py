"""What class logits say: names, probabilities, and which class is called."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.interfaces import SlideOutput
from wsizoo.model import SlideModel

NO_CLASSES = {"survival": "output.risk", "regression": "output.value"}  # what to read instead


@dataclass(frozen=True, eq=False)
class Classes:
    """What logits (..., C) of C classes say, or (..., 1) of two.

    Args:
        names: C of them. probabilities: (..., C) float32. called: (...) int64, which class it is.
    """

    names: list[str]
    probabilities: Tensor
    called: Tensor


def read_classes(model: SlideModel, logits: Tensor) -> Classes:
    """Softmax and the likeliest class; of one logit sigmoid, and the second class if that is high.

    High is from the head's threshold on (0.5 where it states none). Of a head whose loss asks one
    question a class, as DSMIL's, each has a sigmoid, and their sum is made 1. Classes that the
    model does not name are numbered.

    Args:
        model: that gave the logits. logits: `output.logits`, or `output.instance_logits`.

    Raises:
        DataError: the model names another number of classes, or its head gives none.
    """
    task = _task(model)
    if task in NO_CLASSES:
        raise DataError(
            f"'{model.name}' has a {task} head, whose logits are no classes: "
            f"read {NO_CLASSES[task]} instead"
        )
    count = int(logits.shape[-1])
    one = count == 1
    names = [str(name) for name in model.classes] or [
        str(i) for i in range(1 + one if one else count)
    ]
    if len(names) != (2 if one else count):
        expected = "two for one logit" if one else "one name each"
        raise DataError(
            f"'{model.name}' gives {count} logits and names {len(names)} classes ({names}); "
            f"expected {expected}"
        )
    if not one:
        answers = logits.float()
        if getattr(model.head, "one_vs_rest", False):
            answers = F.logsigmoid(answers)
        probabilities = torch.softmax(answers, -1)
        return Classes(names, probabilities, probabilities.argmax(-1))
    positive = torch.sigmoid(logits.float())  # (..., 1)
    stated = getattr(model.head, "threshold", None)
    called = positive[..., 0] >= (0.5 if stated is None else float(stated))
    return Classes(names, torch.cat([1 - positive, positive], -1), called.long())


def classes_of_patches(model: SlideModel, output: SlideOutput) -> Classes | None:
    """What a model says of each patch; None where it says nothing, or nothing of classes."""
    logits = output.instance_logits
    return None if logits is None or _task(model) in NO_CLASSES else read_classes(model, logits)


def _task(model: SlideModel) -> str:
    return "" if model.head is None else model.head.task
