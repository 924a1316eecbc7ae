"""CLAM: attention pooling whose best and worst patches teach a classifier of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.losses import cross_entropy
from wsizoo.mil.options import check_choice, check_shares, check_sizes
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.attention_pooling import AttentionScores, highest, of_best_class, pooled
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.packed import Packed, check_task, label_of, split
from wsizoo_plugin_mil.smooth_svm import smooth_top1_svm
from wsizoo_plugin_mil.survival import SURVIVAL

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "svm": smooth_top1_svm,
}
VARIANTS = ("clam", "mil-lab")


class ClamSB(Packed):
    """One attention for all classes, and instance clustering.

    Args:
        in_dim: width of the features. n_outputs: C, of the head; None: no classifier.
        dim, attention: widths of the embedding and of the attention network; CLAM's "small" is
            512 and 256, its "big" 512 and 384.
        gated: attention with the sigmoid gate.
        dropout: after the embedding; training only.
        score_dropout: inside the attention network; CLAM's is 0.25 wherever it has any dropout.
        k: patches of the highest, and of the lowest scores, that are taken; a slide of fewer
            patches gives all.
        subtyping: classes exclude one another, so the best patches of each wrong class are its
            negatives.
        instance_loss: "ce", or "svm" (smooth top-1, which CLAM's commands set).
        bag_weight: share of the task's loss; the instance loss has the rest.
        variant: "clam"; or "mil-lab": no dropout after the embedding, MIL-Lab's initialisation.
        task: the head's. Of another than classification there is no instance loss.

    The instance loss needs the slide's label; slides whose target has none train by the task's
    loss alone, in full.

    Returns (forward): `slide` (E,), `scores` (N,) the attention, which sums to 1, `instances`
    (N, E), `logits` (C,).

    Cost: N (D E + (1 + gated) E A + A + E) multiply-adds.
    Source: Lu et al., Nature Biomedical Engineering 2021, https://arxiv.org/abs/2004.09666, and
    https://github.com/mahmoodlab/CLAM at 53e2409; MIL-Lab at dfc3c17.
    Differs: patches are chosen by scores before their softmax, which on large slides underflows.
    """

    owns_classifier = True
    gives_instances = True
    classifier_tensors: ClassVar[tuple[str, ...]] = (
        *("classify.weight", "classify.bias"),
        *("judge.weight", "judge.bias"),
    )
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "attention": 8}
    one_row: ClassVar[bool] = True

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        dim: int = 512,
        attention: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        score_dropout: float = 0.25,
        k: int = 8,
        subtyping: bool = False,
        instance_loss: str = "ce",
        bag_weight: float = 0.7,
        variant: str = "clam",
        task: str | None = None,
    ) -> None:
        check_task("CLAM", task)
        check_choice("CLAM", LOSSES, instance_loss=instance_loss)
        check_choice("CLAM", VARIANTS, variant=variant)
        check_sizes("CLAM", dim=dim, attention=attention, k=k)
        check_shares("CLAM", dropout=dropout, score_dropout=score_dropout)
        check_shares("CLAM", whole=True, bag_weight=bag_weight)
        rows = 1 if self.one_row else n_outputs or 1
        super().__init__(in_dim, rows * dim, dim)
        self.survival, self.labelled = task == SURVIVAL, task in (None, "classification")
        self.k, self.subtyping, self.bag_weight = k, subtyping, bag_weight
        self.criterion = LOSSES[instance_loss]
        embedded = 0.0 if variant == "mil-lab" else dropout
        self.embed = RowSequential(RowLinear(in_dim, dim), nn.ReLU(), nn.Dropout(embedded))
        self.attention = AttentionScores(dim, attention, rows, gated, score_dropout)
        self.classes = 2 if n_outputs == 1 else n_outputs or 0  # one logit is of two classes
        self.classify = nn.Linear(dim, n_outputs) if n_outputs else None
        self.judge = nn.Linear(dim, 2 * self.classes) if n_outputs else None  # (class, in or out)
        begin(self, "he" if variant == "mil-lab" else "torch")

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        instances = self.embed(features)  # (N_total, E)
        raw = split(self.attention(instances), bags)  # (n, rows) of each slide
        weights, rows = pooled(raw, instances)  # rows: (B, rows, E)
        logits = self.logits(rows)
        found = Aggregated(
            slide=rows.flatten(1),
            scores=lambda: torch.cat(of_best_class(weights, logits, self.survival)),
            instances=instances,
            logits=logits,
        )
        if self.training and self.labelled and self.judge is not None:
            self.teach(found, raw, instances, bags)
        return found

    def logits(self, rows: Tensor) -> Tensor | None:
        """(B, rows, E) -> (B, C); of several rows, each class by its own."""
        if self.classify is None:
            return None
        if self.one_row:
            return self.classify(rows[:, 0])  # type: ignore[no-any-return]
        return (rows * self.classify.weight).sum(2) + self.classify.bias

    def teach(
        self, found: Aggregated, raw: Sequence[Tensor], instances: Tensor, bags: Sequence[Bag]
    ) -> None:
        """Add the instance loss, the mean over the slides, of which some state no label."""
        labels = [label_of(bag, self.classes) for bag in bags]
        total = self.instance_loss([scores.t() for scores in raw], instances, labels)
        if total is not None:
            # the slide's part is 0: of this loss alone the patches' gradient would be sparse
            mean = total / len(bags) + 0 * found.slide.sum()
            found.task_weight = self.bag_weight
            found.losses = {"instances": (1 - self.bag_weight) * mean}

    def instance_loss(
        self, scores: Sequence[Tensor], instances: Tensor, labels: Sequence[int | None]
    ) -> Tensor | None:
        """The sum over the slides that have a label; None where none has.

        Args:
            scores: (rows, n) of each slide, before their softmax. instances: (N_total, E).
        """
        taught, rows, first = [], [], 0
        for each, label in zip(scores, labels, strict=True):
            for i, (index, target) in self.chosen(each, label).items():
                taught.append((i, target))
                rows.append(first + index)
            first += each.shape[1]
        if not rows:
            return None
        # as instances[...], whose gradient would be as large as all instances
        patches = F.embedding(torch.cat(rows), instances, sparse=True)
        parts = self.judged(patches).split([len(index) for index in rows])
        terms = [
            self.criterion(part[:, i], target)
            for part, (i, target) in zip(parts, taught, strict=True)
        ]
        total = torch.stack(terms).sum()
        return total / self.classes if self.subtyping else total

    def judged(self, patches: Tensor) -> Tensor:
        """(n, E) -> (n, classes, 2): out of each class, and in it."""
        assert self.judge is not None
        return self.judge(patches).unflatten(1, (self.classes, 2))  # type: ignore[no-any-return]

    def chosen(self, scores: Tensor, label: int | None) -> dict[int, tuple[Tensor, Tensor]]:
        """For each class that is taught: which patches, and which of them are in it (1) or not."""
        found = {}
        for i in range(0 if label is None else self.classes):
            row = scores[i if len(scores) > 1 else 0]
            best = highest(row, self.k)
            out = torch.zeros_like(best)
            if i == label:
                index = torch.cat([best, highest(-row, self.k)])
                found[i] = index, torch.cat([torch.ones_like(best), out])
            elif self.subtyping:
                found[i] = best, out
        return found


class ClamMB(ClamSB):
    """One attention a class, each with its own sum and its own line of the classifier.

    As `ClamSB`, with `slide` (C E,), and `scores` the attention of the class with the largest
    logit; of survival the mean over the bins.
    """

    classifier_tensors: ClassVar[tuple[str, ...]] = (
        *ClamSB.classifier_tensors,
        "attention.score.weight",
        "attention.score.bias",
    )
    one_row = False
