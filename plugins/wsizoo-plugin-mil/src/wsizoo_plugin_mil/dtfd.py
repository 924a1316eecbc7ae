"""DTFD-MIL: a slide as several pseudo-bags, whose best patches or sums are a bag once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Bag, Prediction
from wsizoo.errors import SpecError
from wsizoo.mil.options import check_choice, check_shares, check_sizes, preset
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.attention_pooling import AttentionScores, highest
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.packed import Packed, check_task, split
from wsizoo_plugin_mil.survival import SURVIVAL, mean_hazards, risk

DISTILL = ("afs", "maxs", "maxmins")
VARIANTS: dict[str, dict[str, Any]] = {
    "dtfd": {"residuals": 0, "dropout": 0.0},
    "mil-lab": {"residuals": 4, "dropout": 0.25},
}


class DTFD(Packed):
    """Attention pooling of pseudo-bags, and then of what they hand on.

    Args:
        in_dim: width of the features. n_outputs: C, of the head; None: no classifier, and patches
            are ranked by their attention.
        variant: "dtfd", the authors'; or "mil-lab": sums by scores without a softmax, one loss of
            both tiers whose gradient goes through both. Two more are the variant's where they are
            None.
        dim: width E of the embedding. residuals: blocks of two layers after it.
        dropout: in the attention of the first tier and before its classifier, training only.
        attention: width of both attention networks.
        groups: G pseudo-bags, drawn anew each time in training, and always the same in evaluation.
        total: patches that all groups hand on, total // groups each.
        distill: "afs": each group hands on its sum; "maxs": its patches most sure of the last
            class (of survival those of the highest risk); "maxmins": also those least sure.
        bag_weight: share of the slide's loss, of "mil-lab"; the groups' have the rest.
        shuffles: draws of groups whose probabilities are averaged in evaluation, of survival the
            curves; the logits are then those of the mean.
        compat: "published": total < groups is taken with "maxmins", and all patches are handed on;
            a slide of fewer patches than G has empty groups, whose sums are 0.
        task: the head's.

    In training the groups' predictions are further ones, and what the groups hand on is detached
    ("dtfd"), so that each tier is trained by its own loss, as there by two optimisers.

    Returns (forward): `slide` (E,), `scores` (N,) the first tier's attention over the whole slide
    (of "mil-lab" before a softmax, as it is used), `logits` (C,).

    Cost: N (D E + 2 R E^2 + 2 E A + A + G E + E C) multiply-adds for R residual blocks.
    Source: Zhang et al., CVPR 2022, https://arxiv.org/abs/2203.12081, and
    https://github.com/hrzhang1123/DTFD-MIL at 10964f4; MIL-Lab at dfc3c17.
    Differs: evaluation draws its groups from a fixed seed. A slide of fewer patches than G has as
    many groups as patches, see `compat`. Of one output, patches are ranked by it, not by its
    softmax; of bins of time by the risk that they give together, not by the last bin.
    """

    owns_classifier = True
    order_matters = True
    classifier_tensors = ("judge.weight", "judge.bias", "classify.weight", "classify.bias")
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "attention": 8}

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        variant: str = "dtfd",
        dim: int = 512,
        attention: int = 128,
        residuals: int | None = None,
        dropout: float | None = None,
        groups: int = 4,
        total: int = 4,
        distill: str = "afs",
        bag_weight: float = 0.7,
        shuffles: int = 1,
        compat: str | None = None,
        task: str | None = None,
    ) -> None:
        check_task("DTFD", task)
        check_sizes("DTFD", dim=dim, attention=attention, groups=groups, shuffles=shuffles)
        check_sizes("DTFD", 0, residuals=residuals, total=total)
        check_shares("DTFD", dropout=dropout)
        check_shares("DTFD", whole=True, bag_weight=bag_weight)
        _check(distill, (groups, total), compat, shuffles if n_outputs == 1 else 1)
        set_to = preset("DTFD", VARIANTS, variant, residuals=residuals, dropout=dropout)
        super().__init__(in_dim, dim)
        self.groups, self.per_group, self.distill = groups, total // groups, distill
        self.published, self.survival = compat == "published", task == SURVIVAL
        self.shuffles, self.bag_weight, self.mixed = shuffles, bag_weight, variant == "mil-lab"
        self.embed = RowSequential(RowLinear(in_dim, dim, bias=self.mixed), nn.ReLU())
        self.blocks = nn.Sequential(*(Residual(dim) for _ in range(set_to["residuals"])))
        self.attention = AttentionScores(dim, attention, dropout=set_to["dropout"])
        self.drop = nn.Dropout(set_to["dropout"])
        self.judge = nn.Linear(dim, n_outputs) if n_outputs else None
        self.attention_of_groups = AttentionScores(dim, attention)
        self.classify = nn.Linear(dim, n_outputs) if n_outputs else None
        begin(self, "he" if self.mixed else "torch")

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        instances = self.blocks(self.embed(features))  # (N_total, E)
        raw = self.attention(instances)[:, 0]  # (N_total,)
        slides, logits, judged = [], [], []
        for rows, scores in zip(split(instances, bags), split(raw, bags), strict=True):
            orders = [None] if self.training else drawn_orders(len(rows), self.shuffles)
            found = [self.pooled(rows, scores, order) for order in orders]
            slides.append(torch.stack([one["slide"] for one in found]).mean(0))
            if self.classify is not None:
                logits.append(self.mean_of([one["logits"] for one in found]))
                judged.append(found[0]["judged"])
        parts = split(raw.detach(), bags)
        output = Aggregated(
            slide=torch.stack(slides),
            scores=lambda: torch.cat([p if self.mixed else p.softmax(0) for p in parts]),
            logits=torch.stack(logits) if logits else None,
        )
        if self.training and judged:
            share = 1 - self.bag_weight if self.mixed else 1.0
            output.task_weight = self.bag_weight if self.mixed else 1.0
            output.predictions = {
                f"groups/{i}": Prediction(each, weight=share, slide=i)
                for i, each in enumerate(judged)
            }
        return output

    def pooled(self, rows: Tensor, scores: Tensor, order: Tensor | None) -> dict[str, Tensor]:
        """Both tiers of one slide.

        Args:
            rows: (n, E). scores: (n,) of the first tier. order: (n,) how patches are shuffled
                before they are cut into groups; None: drawn.

        Returns:
            By name: `paid` (n, g) what each group pays to its patches; `judged` (g, C), the groups'
            logits; `surest` (n,) the ranking; `index` (K,) which patches are handed on; `handed`
            (K, E); `raw` (K,) their scores; `slide` (E,), `logits` (C,).
        """
        order = torch.randperm(len(rows)) if order is None else order
        count = self.groups if self.published else min(self.groups, len(rows))
        member = members(order.to(rows.device), count)  # (n, g)
        outside = torch.where(member.any(0), self.outside, 0.0).to(scores)  # (g,)
        paid = self.weighed(torch.where(member, scores[:, None], outside), 0) * member  # (n, g)
        sums = paid.t() @ rows  # (g, E)
        found = {"paid": paid}
        if self.judge is not None:
            found["judged"] = self.judge(self.drop(sums))
        if self.distill == "afs":
            handed = sums
        else:
            found["surest"] = self.surest(rows.detach(), paid.detach().sum(1))
            found["index"] = self.chosen(found["surest"], member)
            handed = rows[found["index"]]
        if self.training and not self.mixed:
            handed = handed.detach()
        raw = self.attention_of_groups(handed)[:, 0]  # (K,)
        found |= {"handed": handed, "raw": raw, "slide": self.weighed(raw, 0) @ handed}
        if self.classify is not None:
            found["logits"] = self.classify(found["slide"])
        return found

    @property
    def outside(self) -> float:
        """The score of patches of other groups."""
        return 0.0 if self.mixed else -math.inf

    def weighed(self, scores: Tensor, axis: int) -> Tensor:
        return scores if self.mixed else torch.softmax(scores, axis)

    def surest(self, rows: Tensor, paid: Tensor) -> Tensor:
        """(n,) Probability of the last class, of what each patch brings into its group's sum; of
        survival, and of one output, the risk.
        """
        if self.judge is None:
            return paid
        parts = paid[:, None] * (rows @ self.judge.weight.detach().t())  # (n, C)
        if self.survival or parts.shape[1] == 1:
            return risk(parts)
        return torch.softmax(parts, 1)[:, -1]

    def mean_of(self, logits: Sequence[Tensor]) -> Tensor:
        """(C,) logits of the mean of several predictions (C,); of one, themselves."""
        if len(logits) == 1:
            return logits[0]
        return mean_hazards(logits) if self.survival else averaged(logits)

    def chosen(self, surest: Tensor, member: Tensor) -> Tensor:
        """(K,) int64, group by group: the patches most sure, then those least sure; ties: first."""
        index = []
        for group in member.unbind(1):
            rows = torch.nonzero(group)[:, 0]
            ranked = rows[highest(surest[rows], len(rows))]
            index.append(ranked[: self.per_group])
            if self.distill == "maxmins":
                index.append(ranked[-self.per_group :])  # all, of 0: see `compat`
        return torch.cat(index)


class Residual(nn.Module):
    """h + ReLU(W2 ReLU(W1 h)), without biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = RowLinear(dim, dim, bias=False)
        self.second = RowLinear(dim, dim, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.relu(self.second(torch.relu(self.first(h))))


def members(order: Tensor, groups: int) -> Tensor:
    """(n, g) bool: which patch is in which group.

    The shuffled patches are cut one group after the other; the first groups have one more where
    they cannot be of one size.
    """
    n = len(order)
    number = torch.arange(groups, device=order.device)
    sizes = n // groups + (number < n % groups).long()
    group = torch.empty_like(order)
    group[order] = number.repeat_interleave(sizes)
    return group[:, None] == number


def drawn_orders(n: int, count: int) -> list[Tensor]:
    """The same so many permutations (n,) each time; torch's own random numbers are left alone."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(n, generator=generator) for _ in range(count)]


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """(C,) logits of the mean probability of several predictions (C,)."""
    return torch.stack(list(logits)).log_softmax(1).logsumexp(0) - math.log(len(logits))


def _check(distill: str, sizes: tuple[int, int], compat: str | None, shuffles: int) -> None:
    """sizes: groups and total. shuffles: where there is one output."""
    groups, total = sizes
    if shuffles > 1:
        raise SpecError(
            f"DTFD's shuffles is {shuffles}, expected 1, or more with a head of several outputs"
        )
    check_choice("DTFD", DISTILL, distill=distill)
    check_choice("DTFD", (None, "published"), compat=compat)
    handed = distill == "afs" or total >= groups or (compat and distill == "maxmins")
    if not handed:
        raise SpecError(
            f"DTFD has groups={groups} and total={total}, of which no group hands on any patch; "
            "expected a total of at least one a group. MIL-Lab's shipped configuration, whose "
            "groups then hand on all, is distill=maxmins compat=published"
        )
