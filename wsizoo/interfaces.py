"""The interfaces of a slide model's parts: Encoder, Selector, Aggregator, Head.

Parts take a `Bag`, one slide, with no batch dimension. What a part returns never depends on a flag:
optional fields are None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import PluginError
from wsizoo.fingerprint import Fingerprint
from wsizoo.outputs import LATE, OnFirstAccess, Scored

Reads = Literal["features", "pixels"]
Task = Literal["classification", "survival", "segmentation", "regression"]


@dataclass(frozen=True)
class Prediction:
    """A further prediction of a method, to which the trainer applies the task's own loss.

    Args:
        logits: (C,) or (n, C), as the head's raw outputs.
        target: None: the slide's own, the same for all n rows; a mapping as `Head.loss` takes,
            with n rows each; a tensor (n,): labels (of slides or patches) that the method chose.
        weight: factor of its loss. slide: which slide of a packed batch it belongs to.
    """

    logits: Tensor
    target: Tensor | Mapping[str, Tensor] | None = None
    weight: float = 1.0
    slide: int = 0


@dataclass
class Selected:
    """What a selector hands on.

    Args:
        bag: eval: the kept patches, in ascending order. Training: may be all N with modified
            features, so that gradients reach the scorer.
        index: (K,) int64, rows of the bag that was passed in; None: all of them.
        scores: (N,) how much each patch of the bag that was passed in is wanted, or None.
        losses: auxiliary terms by name (training only).
        weights: (K,) how much each patch of `bag` counts (training only): an aggregator that
            `takes_weights` gets them, of the others features are multiplied.
        alone: in this training step only the selector learns; the other parts rest, in eval mode.
    """

    bag: Bag
    index: Tensor | None = None
    scores: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    alone: bool = False


@dataclass
class Aggregated(Scored):
    """What an aggregator returns; unused fields stay None.

    Args:
        slide: (E,) slide embedding; packed: (B, E).
        scores: (N,) importance of each patch, larger is more, any scale; or a zero-argument
            function that computes it when somebody asks.
        instances: (N, I) one vector a patch, for per-patch heads; I = `instance_dim`.
        logits: (C,) of the slide, of a method that owns its classifier; never per-patch values.
        instance_logits: (N, C) of a method that owns its classifier of patches.
        groups: (N,) int64, of a method that fuses patches: those of one number became one.
        losses: the method's own auxiliary terms by name, not the task's loss (training only).
        predictions: further predictions by name; the trainer applies the task's loss to them.
        task_weight: factor of the task's own loss beside them (training only).
    """

    slide: Tensor | None = None
    scores: OnFirstAccess = LATE
    instances: Tensor | None = None
    logits: Tensor | None = None
    instance_logits: Tensor | None = None
    groups: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    task_weight: float = 1.0


@dataclass
class SlideOutput(Scored):
    """What a slide model returns; unused fields are None. Packed: a leading B, see `offsets`.

    Args:
        logits: (C,) of the slide; never per-patch values.
        instance_logits: (N, C) per patch, of a per-patch head or beside the slide's logits.
        hazards: (T,) conditional probability of the event in each time bin.
        risk: () larger is worse.
        value: () regression.
        embedding: (E,).
        scores: (N,) importance of each patch of the bag that was passed in: the aggregator's, else
            the selector's.
        selector_scores: (N,) how much the selector wanted each patch; None: no selector.
        groups: (N,) int64, see `Aggregated`; packed: each slide's own, from 0.
        kept: (K,) int64, which patches a selector kept, ascending; None: all. The others have 0 in
            the aggregator's `scores`, in `groups` and in `instance_logits`: mask them.
        offsets: (B+1,) of per-instance fields, packed outputs only.
        losses, predictions, task_weight: see `Aggregated` (training only).
    """

    logits: Tensor | None = None
    instance_logits: Tensor | None = None
    hazards: Tensor | None = None
    risk: Tensor | None = None
    value: Tensor | None = None
    embedding: Tensor | None = None
    scores: OnFirstAccess = LATE
    selector_scores: Tensor | None = None
    groups: Tensor | None = None
    kept: Tensor | None = None
    offsets: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    task_weight: float = 1.0


class Part(nn.Module):
    """What every part may tell the trainer; the defaults suit a method without special training.

    What must survive a resume is a buffer or a parameter.
    """

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: `{"params": [...], "lr": ...}`; default one group at `base_lr`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": base_lr}]

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        """Called once before the first step (not on resume); `slides`: the training part."""

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after each optimiser step, `step` counting from 1: EMA teachers, schedules."""

    def inference_state(self) -> dict[str, Tensor]:
        """Tensors that are published; a method leaves its teacher out by overriding this."""
        return self.state_dict()

    @property
    def ready(self) -> bool:
        """False: so early in training that no epoch is chosen as the best."""
        return True


class Encoder(Part):
    """Patches -> features.

    Class or instance attributes:
        name: as in the catalogue. dim: width D of a vector; None for `pixels`.
        mpp: microns per pixel of its input; patch_size: nominal edge in pixels at that scale.
        preprocessing: one line that changes whenever the pixels that reach the network change.
        pooling: which output is the vector. revision, weights: commit or version, and digest.
        precision ("fp32", "fp16", "bf16"; on a GPU), min_tissue (of a patch): if not asked for.
    """

    name: str
    dim: int | None
    mpp: float
    patch_size: int
    preprocessing: str = "none"
    pooling: str | None = None
    revision: str | None = None
    weights: str | None = None
    precision: str = "fp32"
    min_tissue: float | None = None

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 at `mpp` -> (B, D) float32. Deterministic, no gradient needed."""
        raise NotImplementedError

    def fingerprint(self, mpp: float | None = None, patch_size: int | None = None) -> Fingerprint:
        """What features made by this encoder are, at the scale and size that were asked for."""
        made = self.name, self.revision, self.weights, self.preprocessing, self.pooling
        return Fingerprint(*made, mpp or self.mpp, patch_size or self.patch_size)


class Selector(Part):
    """Bag -> fewer patches. `out_dim` is the width it hands on (the width it got)."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.in_dim = self.out_dim = in_dim

    def forward(self, bag: Bag) -> Selected:
        raise NotImplementedError


class Aggregator(Part):
    """Bag -> one slide vector (and more). The contract is one Bag.

    A subclass may add `forward_packed(batch: BagBatch) -> Aggregated` for speed; its result must
    equal the one-by-one results: `slide` (B, E), per-instance fields concatenated.

    Class attributes declare behaviour; conformance checks hold the class to them:
        order_matters: the result depends on the order of the rows.
        uses_coords: bags without coords are refused; uses_spacing: those without spacing too.
        absolute_coords: moving the slide on its grid changes the result.
        reads: "features" (N, D) float, or "pixels" (N, 3, H, W) uint8.
        owns_classifier: fills `logits`, `instance_logits` or both; its constructor takes
            `n_outputs` (None: headless, it fills neither) and, if it names it, the head's `task`.
        gives_instances: fills `instances`, so that per-patch heads fit.
        gives_slide: fills `slide`, so that the other heads fit.
        takes_weights: `forward(bag, weights=None)` multiplies its attention by `Selected.weights`.
        classifier_tensors: names of its own tensors that belong to the classifier it owns; `adapt`
            leaves them new.
    """

    order_matters: ClassVar[bool] = False
    uses_coords: ClassVar[bool] = False
    uses_spacing: ClassVar[bool] = True  # where it uses coords
    absolute_coords: ClassVar[bool] = False
    reads: ClassVar[Reads] = "features"
    owns_classifier: ClassVar[bool] = False
    gives_instances: ClassVar[bool] = False
    gives_slide: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = False
    classifier_tensors: ClassVar[tuple[str, ...]] = ()

    forward_packed: Callable[[BagBatch], Aggregated] | None = None

    def __init__(self, in_dim: int, out_dim: int, instance_dim: int | None = None) -> None:
        """Widths of the features, of `slide`, and of `instances` (default `out_dim`)."""
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        self.instance_dim = out_dim if instance_dim is None else instance_dim

    def forward(self, bag: Bag) -> Aggregated:
        raise NotImplementedError


class Head(Part):
    """Aggregated -> the task's numbers: `project` to raw outputs, then `outputs` gives them names.

    Args:
        in_dim: width of what it reads; None: the aggregator owns the classifier.
        n_outputs: number of raw outputs (classes, time bins, values).

    Class attribute `compares_slides`: the loss compares the slides of a batch, and is 0 of one.
    """

    task: ClassVar[Task]
    reads: ClassVar[Literal["slide", "instances"]] = "slide"
    compares_slides: ClassVar[bool] = False

    def __init__(self, in_dim: int | None, n_outputs: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.linear = None if in_dim is None else nn.Linear(in_dim, n_outputs)

    def project(self, aggregated: Aggregated) -> Tensor:
        """Raw outputs, (..., n_outputs): the aggregator's own logits, or a linear map.

        Raises:
            PluginError: the aggregator does not fill what this head reads.
        """
        own = "logits" if self.reads == "slide" else "instance_logits"
        field = own if self.linear is None else self.reads
        source: Tensor | None = getattr(aggregated, field)
        if source is None:
            raise PluginError(f"a {self.task} head reads '{field}', which the aggregator left None")
        return source if self.linear is None else cast(Tensor, self.linear(source))

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        """Fields of `SlideOutput` by name, from raw outputs with any leading dimensions.

        The raw outputs themselves are among them, as `logits` or (per patch) `instance_logits`.
        """
        raise NotImplementedError

    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """The task's loss () of raw outputs (n, n_outputs), usually a mean over the n rows.

        Args:
            raw: a row a slide of the batch, or (`reads = "instances"`) a row a patch.
            targets: n rows each. What all slides state, `label`, `time`, `event`, `value`; for
                patches `instances`, -1 for unknown or dropped ones.

        Raises:
            DataError: a target that is not there or does not fit.
        """
        raise NotImplementedError

    def forward(self, aggregated: Aggregated) -> dict[str, Tensor]:
        return self.outputs(self.project(aggregated))


class WholeModel(Part):
    """A model that selector, aggregator and head cannot express: Bag -> SlideOutput.

    A subclass may add `forward_packed(batch: BagBatch) -> SlideOutput`, equal to one by one.

    Class attributes: `reads`, `uses_coords`, `absolute_coords`, `order_matters` as an aggregator's;
    `classes`, names in the order of its logits (or an attribute of the instance).
    """

    reads: ClassVar[Reads] = "features"
    uses_coords: ClassVar[bool] = False
    absolute_coords: ClassVar[bool] = False
    order_matters: ClassVar[bool] = False
    classes: tuple[str, ...] = ()

    forward_packed: Callable[[BagBatch], SlideOutput] | None = None

    def forward(self, bag: Bag) -> SlideOutput:
        raise NotImplementedError

    def losses(self, output: SlideOutput, slides: Sequence[Bag]) -> Mapping[str, Tensor]:
        """Everything to minimise, by name; default `output.losses`. `slides` have the targets.

        With a head of its own: `return wsizoo.objectives.training_losses(head, output, slides)`.
        """
        if output.predictions or not output.losses:
            what = "predictions, which need a loss" if output.predictions else "no losses"
            raise PluginError(
                f"{type(self).__name__} gives {what}: fill output.losses in training, override "
                "losses(output, slides), or pass a task_loss"
            )
        return output.losses
