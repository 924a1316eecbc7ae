"""MHIM-MIL: a teacher finds the patches that are easy, and a student learns without them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wsizoo
from wsizoo import Aggregated, Bag, Prediction
from wsizoo.errors import SpecError
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.mhim_encoders import (
    AttentionEncoder,
    DSMILEncoder,
    Encoded,
    Network,
    TransMILEncoder,
    with_buffers,
)
from wsizoo_plugin_mil.mhim_masking import AT_RANDOM, Share, cosine, kept_patches
from wsizoo_plugin_mil.mhim_merging import Merging
from wsizoo_plugin_mil.mhim_options import settled
from wsizoo_plugin_mil.packed import Packed, split


@dataclass(frozen=True)
class Plan:
    """The patches of a slide that the student sees, int64: as tokens, and merged into a few."""

    kept: Tensor
    merged: Tensor


class MhimABMIL(Packed):
    """Masked hard instance mining with plain attention pooling.

    Args:
        in_dim: width of the features. n_outputs: C, of the head; None: no classifier.
        version: "v1" of 2023 or "v2" of 2025, which merges tokens. Of it are those of the next ones
            that are None.
        by_class: patches are ranked by the probability of the likeliest class of what they bring
            into the slide ("v2"), not by attention ("v1", and where there is one output).
        activation: of the embedding, "relu" or "gelu". alpha: weight of the consistency.
        high: share of the patches that are masked, of those the teacher ranks highest.
        high_among: they are drawn at random from high / high_among of all; 1: none is drawn.
        at_random: share that is masked at random. low: of those that are ranked lowest.
        fading: `high` falls to 0 along a cosine in training.
        momentum: of the teacher. rising: it rises to 1 along a cosine in training.
        queries: tokens into which `Merging` makes those that are not kept; 0: no merging.
        keep, merge_momentum, merge_test: share of tokens that is not merged; of the queries; in
            evaluation all tokens are merged too, beside themselves.
        dim, dropout: width E of the embedding; after it, the teacher's too, training only.
        pooling: activation of the attention network, "relu", "gelu" or "tanh".
        temperature: of the teacher's vectors, whose softmax the student's is to be like.
        teacher: a trained model of this kind, by its name or folder, as which the teacher begins; a
            baseline is one with high=0 at_random=0 queries=0 alpha=0. None: it begins as the
            student. student: what the student takes of it then, "none", "embedding" or "all".

    Several slides are embedded in one pass; masks and merging are slide by slide.

    Returns (forward): `slide` (E,), `scores` (N,) the student's attention (0 of masked patches),
    `logits` (C,).

    Cost: N (D E + 128 E + 128 + E) multiply-adds; the teacher's pass in training is as much, the
    student's then on the patches that are left. Merging: 1024 E for each merged token.
    Source: Tang et al., ICCV 2023, https://arxiv.org/abs/2307.15254, and 2025,
    https://arxiv.org/abs/2509.11526; https://github.com/DearCaat/MHIM-MIL at 5377eb6 and 9d0c91a.
    Differs: patches keep their order, there that of a set of Python. A slide of which nothing would
    be left is not masked. v2 runs without masks and without merging too.
    """

    owns_classifier = True
    classifier_tensors: ClassVar[tuple[str, ...]] = (
        "student.encoder.classify.weight",
        "student.encoder.classify.bias",
    )
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}
    encoder: ClassVar[type[nn.Module]] = AttentionEncoder
    steps: Tensor

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        version: str = "v2",
        dim: int = 512,
        activation: str | None = None,
        pooling: str = "relu",
        dropout: float = 0.25,
        by_class: bool | None = None,
        high: float | None = None,
        high_among: float | None = None,
        at_random: float | None = None,
        low: float = 0.0,
        fading: bool | None = None,
        queries: int | None = None,
        keep: float = 0.8,
        merge_momentum: float = 0.9999,
        merge_test: bool = False,
        alpha: float | None = None,
        temperature: float = 0.1,
        momentum: float | None = None,
        rising: bool = False,
        teacher: str | None = None,
        student: str = "embedding",
    ) -> None:
        set_to = settled(
            *(version, student, low, keep),
            activation=activation,
            by_class=by_class,
            high=high,
            high_among=high_among,
            at_random=at_random,
            fading=fading,
            queries=queries,
            alpha=alpha,
            momentum=momentum,
        )
        super().__init__(in_dim, self.vectors(n_outputs) * dim)
        self.version, self.by_class = version, set_to["by_class"] and (n_outputs or 0) > 1
        self.high, self.fading = Share(set_to["high"], True, set_to["high_among"]), set_to["fading"]
        self.others = [Share(set_to["at_random"], False, AT_RANDOM), Share(low, False)]
        self.keep, self.merge_test = keep, merge_test
        self.alpha, self.temperature = set_to["alpha"], temperature
        self.momentum, self.rising = set_to["momentum"], rising
        self.teacher_name, self.takes = teacher, student
        encoder = self.encoder(dim, n_outputs, pooling)
        self.student = Network(in_dim, dim, set_to["activation"], dropout, encoder)
        self.teacher = with_buffers(self.student)
        self.merging = None
        if set_to["queries"]:
            self.merging = Merging(dim, set_to["queries"], merge_momentum)
            begin(self.merging, "xavier")
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))  # done, of how many

    @staticmethod
    def vectors(n_outputs: int | None) -> int:
        """How many vectors make the slide's."""
        return 1

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.steps.copy_(torch.tensor([0, total_steps]))
        found = self.student if self.teacher_name is None else self.loaded(self.teacher_name)
        own = dict(self.student.named_parameters())
        wanted = {"all": "", "embedding": "embed."}.get(self.takes)
        with torch.no_grad():
            for name, theirs in self.teacher.named_buffers():
                theirs.copy_(found.get_parameter(name))
                if wanted is not None and name.startswith(wanted):
                    own[name].copy_(theirs)

    def loaded(self, name: str) -> Network:
        """The student of a trained model, which has the same tensors as this one's.

        Raises:
            SpecError: it has not. NotFoundError, WeightsError: as `wsizoo.load`.
        """
        part = wsizoo.load(name).aggregator
        found = part.student if isinstance(part, MhimABMIL) else None
        if found is None or shapes(found) != shapes(self.student):
            what = type(part).__name__ if found is None else "of another size or number of outputs"
            raise SpecError(
                f"MHIM's teacher '{name}' is {what}, expected a trained {type(self).__name__} with "
                "the same dim and outputs. Train one: aggregator.high=0 aggregator.at_random=0 "
                "aggregator.queries=0 aggregator.alpha=0"
            )
        return found

    def after_step(self, step: int, total_steps: int) -> None:
        done = (step - 1) / total_steps
        momentum = cosine(self.momentum, 1.0, done) if self.rising else self.momentum
        with torch.no_grad():
            for theirs, ours in zip(self.teacher.buffers(), self.student.parameters(), strict=True):
                theirs.lerp_(ours, 1 - momentum)
        self.steps.copy_(torch.tensor([step, total_steps]))

    def inference_state(self) -> dict[str, Tensor]:
        """Without the teacher."""
        found = self.state_dict().items()
        return {name: t for name, t in found if name != "steps" and name[:8] != "teacher."}

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        taught: list[Encoded] = []
        plans: list[Plan | None] = [None] * len(bags)
        if self.training and (self.alpha or self.shares() or self.merging is not None):
            taught = self.taught(features, bags)
            plans = [self.plan(each.hardness(self.by_class)) for each in taught]
        parts = self.embedded(features, bags, plans)
        found: list[Encoded] = [
            self.student.encoder(self.tokens(part, plan))
            for part, plan in zip(parts, plans, strict=True)
        ]
        logits = [each.logits for each in found if each.logits is not None]
        output = Aggregated(
            slide=torch.stack([each.rows.flatten() for each in found]),
            scores=lambda: torch.cat(
                [
                    on_patches(each.scores(), plan, len(bag))
                    for each, plan, bag in zip(found, plans, bags, strict=True)
                ]
            ),
            logits=torch.stack(logits) if logits else None,
        )
        if self.training:
            self.teach(output, found, taught)
        return output

    def taught(self, features: Tensor, bags: Sequence[Bag]) -> list[Encoded]:
        """What the teacher sees in each slide; without gradients."""
        with torch.no_grad():
            parts = split(self.teacher.embed(features), bags)
            return [self.teacher.encoder(part) for part in parts]

    def plan(self, hardness: Tensor) -> Plan:
        """hardness: (H, n), by the teacher."""
        with torch.no_grad():
            return self.divided(kept_patches(hardness, self.shares()))

    def divided(self, kept: Tensor, noise: Tensor | None = None) -> Plan:
        """Those to be merged, and the others in an order drawn anew; without merging all, as is.

        Args:
            kept: (K,) patches. noise: (K,), whose order tells which; None: drawn.
        """
        if self.merging is None:
            return Plan(kept, kept[:0])
        noise = torch.rand(len(kept), device=kept.device) if noise is None else noise
        kept = kept[noise.argsort()]
        first = int(len(kept) * self.keep)
        return Plan(kept[:first], kept[first:])

    def shares(self) -> list[Share]:
        """What is masked at the present step."""
        high = self.high
        if self.fading:
            done, of = self.steps.tolist()
            high = replace(high, ratio=cosine(high.ratio, 0.0, done / max(1, of)))
        return [share for share in (*self.others, high) if share.ratio > 0]

    def embedded(
        self, features: Tensor, bags: Sequence[Bag], plans: Sequence[Plan | None]
    ) -> tuple[Tensor, ...]:
        """Of each slide the patches of its plan, kept ones first; without a plan all."""
        rows = [torch.cat([p.kept, p.merged]) for p in plans if p is not None]
        if not rows:
            return split(self.student.embed(features), bags)
        chosen = [own[index] for own, index in zip(split(features, bags), rows, strict=True)]
        embedded: Tensor = self.student.embed(torch.cat(chosen))
        return torch.split(embedded, [len(index) for index in rows])

    def tokens(self, part: Tensor, plan: Plan | None) -> Tensor:
        """(n, E) embedded patches of a plan -> the tokens that the student encodes."""
        if self.merging is None or (plan is None and not self.merge_test):
            return part
        first = 0 if plan is None else len(plan.kept)
        return torch.cat([part if plan is None else part[:first], self.merging(part[first:])])

    def teach(
        self, output: Aggregated, found: Sequence[Encoded], taught: Sequence[Encoded]
    ) -> None:
        """Add the consistency, and v1's loss of both streams of DSMIL in place of the mean's."""
        if self.version == "v1" and found[0].streams is not None:
            output.task_weight = 0.0
            output.predictions = {
                f"streams/{i}": Prediction(each.streams, slide=i)
                for i, each in enumerate(found)
                if each.streams is not None
            }
        if taught and self.alpha:
            terms = [
                consistency(ours.rows, theirs.rows / self.temperature)
                for ours, theirs in zip(found, taught, strict=True)
            ]
            output.losses = {"consistency": self.alpha * torch.stack(terms).mean()}


class MhimTransMIL(MhimABMIL):
    """Masked hard instance mining with TransMIL's layers; the order of patches counts.

    As `MhimABMIL`; `pooling` is not used. `dim` is a multiple of 8, the heads. Several heads vote
    for the patches that are masked.

    Cost: N D E, two layers of `NystromAttention`, and 49 E N multiply-adds; in training as above.
    """

    order_matters = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}
    encoder = TransMILEncoder


class MhimDSMIL(MhimABMIL):
    """Masked hard instance mining with DSMIL; patches are ranked by their likeliest class's logit.

    As `MhimABMIL`; `pooling` is not used. `slide` (C E,), and `logits` the mean of the slide's and
    of the best tokens'.

    Cost: N (D E + 2 E C + 128 E + E^2 + 128^2 + 128 C) multiply-adds; in training as above.
    """

    classifier_tensors = tuple(
        f"student.encoder.dsmil.{layer}.{name}"
        for layer in ("instance", "classify")
        for name in ("weight", "bias")
    )
    encoder = DSMILEncoder

    @staticmethod
    def vectors(n_outputs: int | None) -> int:
        return n_outputs or 1


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in module.named_parameters()}


def on_patches(scores: Tensor, plan: Plan | None, n: int) -> Tensor:
    """Scores of tokens, the merged ones last, -> (n,); 0 of patches that are no token."""
    if plan is None:
        return scores[:n]
    return scores.new_zeros(n).index_copy(0, plan.kept, scores[: len(plan.kept)])


def consistency(ours: Tensor, theirs: Tensor) -> Tensor:
    """() Cross entropy of softmax(ours) (R, E) with softmax(theirs), the mean over the rows."""
    return F.cross_entropy(ours, torch.softmax(theirs, 1))
