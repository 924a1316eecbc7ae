"""SlideModel: selector, aggregator and head as one module that takes a Bag."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import BagError, DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Aggregated, Aggregator, Head, Part, Prediction, Selector, SlideOutput
from wsizoo.losses import merged, training_losses
from wsizoo.spec import ModelSpec

log = logging.getLogger(__name__)
PER_SLIDE = ("logits", "hazards", "risk", "value", "embedding")


class SlideModel(nn.Module):
    """A named composition encoder -> selector -> aggregator -> head.

    Args:
        name: as in the registry. spec: the checked entry it was built from.
        in_dim: width D of the features it reads (channels for pixels).
        aggregator, head, selector: its parts; a headless model gives `embedding` and no logits.
        whole: instead of the three, one part that takes a Bag and returns a SlideOutput.
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
        whole: Part | None = None,
        requires: Fingerprint | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.spec = spec
        self.in_dim = in_dim
        self.selector = selector
        self.aggregator = aggregator
        self.head = head
        self.whole = whole
        self.requires = requires or Fingerprint()
        self.trained = False
        self._reported: set[str] = set()

    @property
    def reads(self) -> str:
        body = self.whole if self.aggregator is None else self.aggregator
        return str(getattr(body, "reads", "features"))

    @property
    def classes(self) -> list[str]:
        return self.spec.classes

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
        output = self._headed(self.aggregator(selected.bag), selected.index, len(bag))
        output.losses = merged(selected.losses, output.losses)
        return output

    def forward_packed(self, batch: BagBatch) -> SlideOutput:
        """Several slides; equals the one-by-one results, in one pass where the method offers it."""
        packed = getattr(self.aggregator, "forward_packed", None)
        if packed is None or self.selector is not None:
            return _stack([self(bag) for bag in batch], batch)
        for bag in batch:
            self.check_bag(bag)
        batch = batch.to(self.device, self.dtype)
        output = self._headed(packed(batch), None, len(batch.features))
        output.offsets = batch.offsets
        return output

    def _headed(self, aggregated: Aggregated, kept: Tensor | None, n: int) -> SlideOutput:
        """The head's fields, and per-instance ones aligned with the n patches passed in."""
        fields = {} if self.head is None else self.head(aggregated)
        if "instance_logits" in fields:
            fields["instance_logits"] = _spread(fields["instance_logits"], kept, n)
        return SlideOutput(
            embedding=aggregated.slide,
            scores=lambda: _spread(aggregated.scores, kept, n),
            kept=kept,
            losses=aggregated.losses,
            predictions=aggregated.predictions,
            **fields,
        )

    def check_bag(self, bag: Bag) -> None:
        """Raise unless this bag may meet this model; see `forward`."""
        if not isinstance(bag, Bag):
            raise BagError(
                f"'{self.name}' takes a wsizoo.Bag, got {type(bag).__name__}. Make one: "
                "wsizoo.Bag(features, coords=xy, spacing=224.0)"
            )
        if bag.encoder is not None:
            self.requires.check_accepts(bag.encoder, f"'{self.name}'", f"slide '{bag.slide_id}'")
            self._report_unverified(bag.encoder)
        self._check_features(bag)
        missing = "coords" if bag.coords is None else "spacing" if bag.spacing is None else None
        if missing and any(getattr(part, "uses_coords", False) for _, part in self.parts()):
            raise BagError(
                f"'{self.name}' uses coordinates, slide '{bag.slide_id}' has no {missing}. Make it "
                "with Bag(features, coords=xy, spacing=level0_px_between_patches)"
            )

    def _check_features(self, bag: Bag) -> None:
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
        if pixels or bool(torch.isfinite(bag.features.sum())):  # the sum is quick, and overflows
            return
        bad = torch.nonzero(~torch.isfinite(bag.features).all(1))[:, 0]
        if len(bad):
            raise BagError(
                f"slide '{bag.slide_id}': {len(bad)} of {len(bag)} patches have NaN or infinite "
                f"features, first patch {int(bad[0])}. Extract it again"
            )

    def _report_unverified(self, features: Fingerprint) -> None:
        unknown = [f for f in self.requires.unverified(features) if f not in self._reported]
        if unknown:
            self._reported.update(unknown)
            fields = ", ".join(unknown)
            log.warning("'%s': the features do not state %s; unverified", self.name, fields)

    def losses(self, output: SlideOutput, bags: Bag | BagBatch) -> dict[str, Tensor]:
        """Everything to minimise, by name: the task's loss, predictions, auxiliary terms.

        The sum of the values is the training loss. Packed: means over the slides. A whole model
        states its own, as `losses` of its output.

        Raises:
            DataError: no head, or a target that does not fit it.
        """
        if self.whole is not None and output.losses:
            return dict(output.losses)
        if self.head is None:
            hint = "Give it one: head=classification"
            raise DataError(f"'{self.name}' has no head, so no loss. {hint}")
        return training_losses(self.head, output, [bags] if isinstance(bags, Bag) else list(bags))

    def parts(self) -> Iterator[tuple[str, Part]]:
        for name in ("selector", "aggregator", "head", "whole"):
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of all parts."""
        return [g for _, part in self.parts() for g in part.param_groups(base_lr) if g["params"]]

    def start_training(self, total_steps: int) -> None:
        for _, part in self.parts():
            part.start_training(total_steps)

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


def _spread(values: Tensor | None, kept: Tensor | None, n: int) -> Tensor | None:
    """Per-instance values of the kept patches, aligned with all n; dropped ones get 0."""
    if values is None or kept is None or len(values) == n != len(kept):
        return values  # of all n, as a selector may hand on in training
    return values.new_zeros((n, *values.shape[1:])).index_copy(0, kept, values)


def _stack(outputs: list[SlideOutput], batch: BagBatch) -> SlideOutput:
    """One output of many: slide-level fields stacked, per-instance ones concatenated."""

    def joined(how: Callable[..., Tensor], values: list[Tensor | None]) -> Tensor | None:
        return None if any(value is None for value in values) else how(values)

    def each(name: str) -> list[Tensor | None]:
        return [getattr(output, name) for output in outputs]

    losses: dict[str, Tensor] = {}
    predictions: dict[str, Prediction] = {}
    for i, output in enumerate(outputs):
        for key, value in output.losses.items():
            losses[key] = losses.get(key, torch.zeros_like(value)) + value / len(outputs)
        for key, p in output.predictions.items():
            predictions[f"{key}/{i}"] = dataclasses.replace(p, slide=i)
    starts = batch.offsets.tolist()
    kept = [None if k is None else k + a for k, a in zip(each("kept"), starts, strict=False)]
    return SlideOutput(
        **{name: joined(torch.stack, each(name)) for name in PER_SLIDE},
        instance_logits=joined(torch.cat, each("instance_logits")),
        scores=lambda: joined(torch.cat, each("scores")),
        kept=joined(torch.cat, kept),
        offsets=batch.offsets,
        losses=losses,
        predictions=predictions,
    )
