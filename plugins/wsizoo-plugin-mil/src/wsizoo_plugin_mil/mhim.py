"""MHIM-MIL: a teacher finds the patches that are easy, and a student learns without them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wsizoo
from wsizoo import Aggregated, Bag, Prediction
from wsizoo.errors import SpecError, WsizooError
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.mhim_encoders import (
    AttentionEncoder,
    DSMILEncoder,
    Encoded,
    Network,
    TransMILEncoder,
    with_buffers,
)
from wsizoo_plugin_mil.mhim_masking import Share, cosine, kept_patches
from wsizoo_plugin_mil.mhim_merging import Merging
from wsizoo_plugin_mil.mhim_options import Options
from wsizoo_plugin_mil.packed import Packed, check_task, split

log = logging.getLogger(__name__)
BASELINE = "aggregator.high=0 aggregator.at_random=0 aggregator.queries=0 aggregator.alpha=0"


@dataclass(frozen=True)
class Plan:
    """The patches of a slide that the student sees, int64: as tokens, and merged into a few."""

    kept: Tensor
    merged: Tensor


class MhimABMIL(Packed):
    """Masked hard instance mining with plain attention pooling.

    Args:
        in_dim: width of the features. n_outputs: C, of the head; None: no classifier.
        version: "v2" of 2025; or "v1" of 2023, which ranks patches by attention, masks many at
            random and merges none. task: the head's; of survival patches are ranked by risk where
            they are ranked by class. options: those of `Options` that are not to be the version's.

    Several slides are embedded in one pass; masks and merging are slide by slide. Without a trained
    `teacher` the first `warm_up` of the steps train the baseline: nothing is masked or merged, and
    the teacher is the student; then it lags behind. No epoch of them is chosen as the best.

    Returns (forward): `slide` (E,), `scores` (N,) the student's attention (0 of masked patches),
    `logits` (C,).

    Cost: N (D E + 128 E + 128 + E) multiply-adds; the teacher's pass in training is as much, the
    student's then on the patches that are left. Merging: 1024 E for each merged token.
    Source: Tang et al., ICCV 2023, https://arxiv.org/abs/2307.15254, and 2025,
    https://arxiv.org/abs/2509.11526; https://github.com/DearCaat/MHIM-MIL at 5377eb6 and 9d0c91a.
    Differs: patches keep their order, there that of a set of Python. A slide of which nothing would
    be left is not masked. v2 runs without masks and without merging too. The warm-up is ours; there
    a baseline is trained first, and its student begins anew but for the embedding.
    """

    owns_classifier = True
    classifier_tensors: ClassVar[tuple[str, ...]] = (
        "student.encoder.classify.weight",
        "student.encoder.classify.bias",
    )
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}
    encoder: ClassVar[type[nn.Module]] = AttentionEncoder
    options_type: ClassVar[type] = Options
    steps: Tensor

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        version: str = "v2",
        task: str | None = None,
        **options: Any,
    ) -> None:
        check_task("MHIM", task)
        o = Options.of(version, options)
        super().__init__(in_dim, self.vectors(n_outputs) * o.dim)
        self.version, self.options = version, o
        self.plain = not (o.alpha or o.queries or o.shares(o.high))  # the baseline
        self.by_class = o.by_class and (n_outputs or 0) > 1
        encoder = self.encoder(o.dim, n_outputs, o.pooling, task)
        self.student = Network(in_dim, o.dim, o.activation, o.dropout, encoder)
        self.teacher = with_buffers(self.student)
        self.merging = Merging(o.dim, o.queries, o.merge_momentum) if o.queries else None
        if self.merging is not None:
            begin(self.merging, "xavier")
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))  # done, of how many

    @staticmethod
    def vectors(n_outputs: int | None) -> int:
        """How many vectors make the slide's."""
        return 1

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.steps.copy_(torch.tensor([0, total_steps]))
        if not (self.plain or self.options.teacher or self.options.warm_up):
            log.warning(
                "MHIM begins with a teacher that has learned nothing, and holds the student to it. "
                "Train a baseline first (%s) and begin as it: aggregator.teacher=RUN/model; or "
                "warm up: aggregator.warm_up=%s",
                BASELINE,
                Options.warm_up,
            )
        found = self.student if self.options.teacher is None else self.loaded(self.options.teacher)
        own = dict(self.student.named_parameters())
        wanted = {"all": "", "embedding": "embed."}.get(self.options.student)
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
        try:
            part = wsizoo.load(name).aggregator
        except WsizooError as error:
            told = f"MHIM's teacher (aggregator.teacher) cannot be loaded: {error}"
            raise type(error)(told) from error
        found = part.student if isinstance(part, MhimABMIL) else None
        if found is None or shapes(found) != shapes(self.student):
            what = type(part).__name__ if found is None else "of another size or number of outputs"
            raise SpecError(
                f"MHIM's teacher '{name}' is {what}, expected a trained {type(self).__name__} with "
                f"the same dim and outputs. Train one: {BASELINE}"
            )
        return found

    @property
    def warm_steps(self) -> int:
        """How many of the steps train the baseline."""
        if self.plain or self.options.teacher is not None:
            return 0
        return int(self.options.warm_up * int(self.steps[1]))

    @property
    def ready(self) -> bool:
        return not (warm := self.warm_steps) or int(self.steps[0]) > warm

    def after_step(self, step: int, total_steps: int) -> None:
        warm, momentum = self.warm_steps, self.options.momentum
        if step <= warm:
            momentum = 0.0
        elif self.options.rising:
            momentum = cosine(momentum, 1.0, (step - 1 - warm) / (total_steps - warm))
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
        if self.training and not self.plain and int(self.steps[0]) >= self.warm_steps:
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
        first = int(len(kept) * self.options.keep)
        return Plan(kept[:first], kept[first:])

    def shares(self) -> list[Share]:
        """What is masked at the present step."""
        high = self.options.high
        if self.options.fading:
            warm, (done, of) = self.warm_steps, self.steps.tolist()
            high = cosine(high, 0.0, max(0, done - warm) / max(1, of - warm))
        return self.options.shares(high)

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
        unplanned = plan is None and (self.training or not self.options.merge_test)
        if self.merging is None or unplanned:
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
        if taught and self.options.alpha:
            terms = [
                consistency(ours.rows, theirs.rows / self.options.temperature)
                for ours, theirs in zip(found, taught, strict=True)
            ]
            output.losses = {"consistency": self.options.alpha * torch.stack(terms).mean()}


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
    """Masked hard instance mining with DSMIL; patches are ranked by their likeliest class's logit,
    of survival by their risk.

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
