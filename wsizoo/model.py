"""SlideModel: selector, aggregator and head as one module that takes a Bag."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.bag_checks import check_features
from wsizoo.errors import BagError, DataError, PluginError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import (
    Aggregated,
    Aggregator,
    Head,
    Part,
    Selected,
    Selector,
    SlideOutput,
    WholeModel,
)
from wsizoo.objectives import TaskLoss, merged, training_losses
from wsizoo.outputs import aligned, aligned_scores, stacked
from wsizoo.selection import aggregate, check_selected, resting
from wsizoo.spec import ModelSpec

log = logging.getLogger(__name__)


class SlideModel(nn.Module):
    """A named composition encoder -> selector -> aggregator -> head.

    Args:
        name: as in the registry. spec: the checked entry it was built from.
        in_dim: width D of the features it reads (channels for pixels).
        aggregator, head, selector: its parts; a headless model gives `embedding` and no logits.
        whole: instead of the three, one part that does it all.
        requires: the fingerprint that features must have; fields unknown to it are not compared.
    """

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        in_dim: int,
        *,
        aggregator: Aggregator | None = None,
        head: Head | None = None,
        selector: Selector | None = None,
        whole: WholeModel | None = None,
        requires: Fingerprint | None = None,
    ) -> None:
        super().__init__()
        self.name, self.spec, self.in_dim = name, spec, in_dim
        self.selector, self.aggregator = selector, aggregator
        self.head, self.whole = head, whole
        self.requires = requires or Fingerprint()
        self.trained = False
        self.facts: dict[str, Any] = {}  # stated by its publisher: data, results, limits
        self.unused: dict[str, Tensor] = {}  # of a file in another format, see weight_formats
        self._reported: set[str] = set()

    @property
    def reads(self) -> str:
        return str(getattr(self.aggregator or self.whole, "reads", "features"))

    @property
    def classes(self) -> list[str]:
        return self.spec.classes if self.whole is None else list(self.whole.classes)

    @property
    def device(self) -> torch.device:
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    def forward(self, bag: Bag) -> SlideOutput:
        """One slide.

        Raises:
            BagError: empty, wrong width or kind, not finite, coords missing where they are used.
            FingerprintError: features of another encoder, or made in another way.
        """
        self.check_bag(bag)
        bag = bag.to(self.device, self.dtype)
        if self.whole is not None:
            output: SlideOutput = self.whole(bag)
            return output
        assert self.aggregator is not None
        if self.selector is None:
            return self._headed(self.aggregator(bag), None, len(bag))
        selected = self.selector(bag)
        check_selected(selected, len(bag), self.name)
        with resting((self.aggregator, self.head) if selected.alone else ()):
            return self._headed(aggregate(selected, self.aggregator), selected, len(bag))

    def forward_packed(self, batch: BagBatch) -> SlideOutput:
        """Several slides; equals the one-by-one results, in one pass where the method offers it."""
        packed = getattr(self.aggregator or self.whole, "forward_packed", None)
        if packed is None or self.selector is not None:
            joined: SlideOutput = stacked([self(bag) for bag in batch], batch)
            return joined
        for bag in batch:
            self.check_bag(bag)
        batch = batch.to(self.device, self.dtype)
        found = packed(batch)
        output = found if self.whole is not None else self._headed(found, None, len(batch.features))
        output.offsets = batch.offsets
        return output

    def _headed(self, aggregated: Aggregated, selected: Selected | None, n: int) -> SlideOutput:
        """The head's fields, and per-instance ones aligned with the n patches passed in."""
        if not isinstance(aggregated, Aggregated):
            got = f"a {type(aggregated).__name__}, expected wsizoo.Aggregated(slide=...)"
            raise PluginError(f"'{self.name}': its aggregator returned {got}")
        fields = {} if self.head is None else self.head(aggregated)
        rows = fields.pop("instance_logits", aggregated.instance_logits)
        kept, wanted, losses = None, None, aggregated.losses
        if selected is not None:
            kept, wanted = selected.index, selected.scores
            losses = merged(selected.losses, losses)
        scored = aggregated.scores_given is not None
        return SlideOutput(
            embedding=aggregated.slide,
            instance_logits=aligned(rows, kept, n),
            scores=aligned_scores(aggregated, kept, n) if scored else wanted,
            selector_scores=wanted,
            groups=aligned(aggregated.groups, kept, n),
            kept=kept,
            losses=losses,
            predictions=aggregated.predictions,
            task_weight=aggregated.task_weight,
            **fields,
        )

    def check_bag(self, bag: Bag) -> None:
        """Raise unless this bag may meet this model; see `forward`."""
        self._check_fits(bag)
        check_features(bag)

    def _check_fits(self, bag: Bag) -> None:
        if not isinstance(bag, Bag):
            raise BagError(
                f"'{self.name}' takes a wsizoo.Bag, got {type(bag).__name__}. Make one: "
                "wsizoo.Bag(features, coords=xy, spacing=224.0)"
            )
        if bag.encoder is not None:
            self.requires.check_accepts(bag.encoder, f"'{self.name}'", f"slide '{bag.slide_id}'")
            self._report_unverified(bag.encoder)
        self._check_shape(bag)
        missing = "coords" if bag.coords is None else "spacing" if bag.spacing is None else None
        users = [part for _, part in self.parts() if getattr(part, "uses_coords", False)]
        if missing and any(missing == "coords" or getattr(p, "uses_spacing", True) for p in users):
            raise BagError(
                f"'{self.name}' uses coordinates, slide '{bag.slide_id}' has no {missing}. Make it "
                "with Bag(features, coords=xy, spacing=level0_px_between_patches)"
            )

    def _check_shape(self, bag: Bag) -> None:
        pixels = bag.features.ndim == 4
        if pixels != (self.reads == "pixels"):
            got = "pixels (N, 3, H, W)" if pixels else "features (N, D)"
            raise BagError(f"'{self.name}' reads {self.reads}, slide '{bag.slide_id}' holds {got}")
        if len(bag) == 0:
            raise BagError(
                f"slide '{bag.slide_id}' has no patches: nothing for '{self.name}' to read"
            )
        if bag.dim != self.in_dim:
            of = f" of {self.requires.encoder}" if self.requires.encoder else ""
            raise BagError(
                f"'{self.name}' reads features{of} of width {self.in_dim}; those of slide "
                f"'{bag.slide_id}' have width {bag.dim}"
            )

    def _report_unverified(self, features: Fingerprint) -> None:
        unknown = [f for f in self.requires.unverified(features) if f not in self._reported]
        if unknown:
            self._reported.update(unknown)
            log.warning(
                "'%s': the features do not state %s; unverified", self.name, ", ".join(unknown)
            )

    def losses(
        self, output: SlideOutput, bags: Bag | BagBatch, task_loss: TaskLoss | None = None
    ) -> dict[str, Tensor]:
        """Everything to minimise, by name: the task's loss, predictions, auxiliary terms.

        The sum of the values is the training loss; what is averaged: `objectives.training_losses`.

        Args:
            task_loss: replaces the head's loss (for a whole model, all that it states itself but
                `output.losses`): class weights, ranking, Cox.

        Raises:
            DataError: no head, or a target that does not fit it.
            PluginError: a whole model that states no losses.
        """
        slides = [bags] if isinstance(bags, Bag) else list(bags)
        if self.whole is not None and task_loss is None:
            return dict(self.whole.losses(output, slides))
        if self.whole is None and self.head is None:
            raise DataError(
                f"'{self.name}' has no head, so no loss. Give it one: head=classification"
            )
        return training_losses(self.head, output, slides, task_loss)

    def parts(self) -> Iterator[tuple[str, Part]]:
        for name in ("selector", "aggregator", "head", "whole"):
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of all parts."""
        return [g for _, part in self.parts() for g in part.param_groups(base_lr) if g["params"]]

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        for _, part in self.parts():
            part.start_training(total_steps, slides)

    def after_step(self, step: int, total_steps: int) -> None:
        for _, part in self.parts():
            part.after_step(step, total_steps)

    def inference_state(self, only: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Tensors that are published, by `part.name`; `only`: of these parts."""
        return {
            f"{name}.{key}": tensor
            for name, part in self.parts()
            if only is None or name in only
            for key, tensor in part.inference_state().items()
        }
