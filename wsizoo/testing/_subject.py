"""What a conformance check works on: one component, made on demand, and the inputs it is given."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag
from wsizoo.interfaces import Aggregated, Prediction, Selected, SlideOutput
from wsizoo.seeding import READ

IN_DIM = 24
N_OUTPUTS = 3
N_PATCHES = 36  # divides into many blocks; `check_odd_count` does not
CLASSES = ("first", "second", "third")
SPACING = 224.0  # level-0 px
NUDGE = 0.05  # standard deviation added to each parameter, so that nothing stays zero-initialised
SAME = {"rtol": 1e-4, "atol": 1e-5}  # of the largest value: float32 sums in another order
DIFFERENT = 1e-4  # of the largest value: less is no effect
AGGREGATED = ("slide", "scores", "instances", "logits", "instance_logits")
OUTPUT = (
    *("logits", "instance_logits", "hazards", "risk", "value", "embedding"),
    *("scores", "selector_scores"),
)
PER_ROW = frozenset(("scores", "selector_scores", "instances", "instance_logits", "kept"))


class CheckError(AssertionError):
    """A component breaks a rule of the contract; the message says which and how."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from this seed on the CPU; the state outside is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


@dataclass
class Subject:
    """One component under test.

    Args:
        maker: its class, or a `functools.partial` of it.
        kind: encoder, selector, aggregator, head or model.
        in_dim: width D of the features it is given.
        pixels: edge of a patch in pixels, for parts that read pixels.
        params: keyword arguments, as a registry entry would state them.
    """

    maker: Callable[..., Any]
    kind: str
    in_dim: int = IN_DIM
    pixels: int = 32
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> Any:
        maker = self.maker
        while isinstance(maker, functools.partial):
            maker = maker.func
        return maker

    @property
    def reads_pixels(self) -> bool:
        return getattr(self.cls, "reads", "features") == "pixels" and self.kind != "head"

    @property
    def width(self) -> int:
        """Width of the features of `bag`; channels for pixels."""
        return 3 if self.reads_pixels else self.in_dim

    def make(self, seed: int = 0, **changes: Any) -> Any:
        """A new instance in eval mode, built as the zoo builds it: seeded, in a forked state."""
        with seeded(seed):
            made = self.maker(**{**self._given(), **self.params, **changes})
        return made.eval()

    def awake(self, seed: int = 0) -> Any:
        """As `make`, with every parameter nudged, so that zero-initialised gates are open.

        But not of a module that is `READ`: whoever makes it again reads the same.
        """
        module = self.make(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        read = {p for m in module.modules() if getattr(m, READ, False) for p in m.parameters()}
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.is_floating_point() and parameter not in read:
                    parameter.add_(NUDGE * torch.randn(parameter.shape, generator=generator))
        return module

    def _given(self) -> dict[str, Any]:
        """The arguments that the zoo passes itself, and classes for a head that needs some."""
        if self.kind == "encoder":
            return {}
        given: dict[str, Any] = {"in_dim": self.width}
        if self.kind == "aggregator" and getattr(self.cls, "owns_classifier", False):
            given["n_outputs"] = N_OUTPUTS
        if self.kind == "head" and "classes" in inspect.signature(self.maker).parameters:
            given["classes"] = CLASSES
        return given

    def bag(self, n: int = N_PATCHES, seed: int = 0) -> Bag:
        """n patches with coords on a grid with holes, in raster order, with every target."""
        generator = torch.Generator().manual_seed(1000 + seed)
        if self.reads_pixels:
            shape = (n, 3, self.pixels, self.pixels)
            features = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        else:
            features = torch.randn(n, self.in_dim, generator=generator)
        edge = int((2 * n) ** 0.5) + 1
        cells = torch.randperm(edge * edge, generator=generator)[:n].sort().values  # (n,)
        grid = torch.stack([cells % edge, cells // edge], 1) + torch.tensor([40, 25])  # (n, 2)
        return Bag(
            features,
            (grid * SPACING).long(),
            spacing=SPACING,
            mpp=0.5,
            slide_id=f"conformance-{n}",
            target=targets(n),
        )

    def patches(self, n: int = 3, seed: int = 0) -> Tensor:
        """(n, 3, H, W) uint8 of an encoder's own size."""
        edge = int(self.make().patch_size)
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, 3, edge, edge), generator=generator).to(torch.uint8)

    def aggregated(self, n: int = 5, seed: int = 0) -> Aggregated:
        """What a head is given: a slide vector, and one a patch."""
        generator = torch.Generator().manual_seed(seed)
        slide = torch.randn(self.in_dim, generator=generator)
        return Aggregated(slide, instances=torch.randn(n, self.in_dim, generator=generator))

    def large(self) -> int:
        return 48 if self.reads_pixels else 2000


def targets(n: int) -> dict[str, Any]:
    """A target for every task at once."""
    return {"label": 1, "time": 1, "event": True, "value": 0.5, "instances": torch.arange(n) % 2}


def rows_of_targets(n: int) -> dict[str, Tensor]:
    """n rows for every task at once, as a head's loss is given them."""
    rows = torch.arange(n) % 2
    return {"label": rows, "time": rows, "event": 1 - rows, "value": rows / 2, "instances": rows}


def raw_outputs(head: Any, n: int = 5, scale: float = 1.0) -> Tensor:
    """(n, n_outputs), as a head's loss is given them."""
    return scale * torch.randn(n, head.n_outputs, generator=torch.Generator().manual_seed(2))


def module_dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def fields(output: Any, n: int) -> dict[str, Tensor]:
    """The tensors of what a part returned, by name; what was kept of n patches as a mask `kept`."""
    if isinstance(output, Tensor):
        return {"features": output}
    if isinstance(output, Mapping):
        return dict(output)
    names = AGGREGATED if isinstance(output, Aggregated) else OUTPUT
    if isinstance(output, Selected):
        found = {"scores": output.scores, "kept": mask(output.index, n)}
        found["weights"] = output.weights
        found["handed_on"] = output.bag.features
    else:
        found = {name: getattr(output, name) for name in names}
    if isinstance(output, SlideOutput) and output.kept is not None:
        found["kept"] = mask(output.kept, n)
    return {name: value for name, value in found.items() if value is not None}


def mask(index: Tensor | None, n: int) -> Tensor:
    """(n,) float, 1 where the patch was kept."""
    return torch.ones(n) if index is None else torch.zeros(n).index_fill(0, index, 1.0)


def evaluate(
    subject: Subject, module: nn.Module, bag: Bag | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What the component gives in eval mode for the standard input (or this bag), by name."""
    dtype = dtype or module_dtype(module)
    module.eval()
    with torch.no_grad():
        if subject.kind == "encoder":
            return fields(module(subject.patches()), 0)
        if subject.kind == "head":
            return fields(module(moved(subject.aggregated(), dtype)), 0)
        given = subject.bag() if bag is None else bag
        return fields(module(given.to(dtype=dtype)), len(given))


def moved(aggregated: Aggregated, dtype: torch.dtype) -> Aggregated:
    assert aggregated.slide is not None and aggregated.instances is not None
    return Aggregated(aggregated.slide.to(dtype), instances=aggregated.instances.to(dtype))


def training_scalar(subject: Subject, module: nn.Module, bag: Bag | None = None) -> Tensor:
    """A number () that depends on all that the component gives in training mode."""
    module.train()
    if subject.kind == "head":
        raws = [module.project(subject.aggregated(seed=i)) for i in range(2)]  # type: ignore[operator]
        rows = torch.cat(raws) if raws[0].ndim == 2 else torch.stack(raws)  # (n, n_outputs)
        loss: Tensor = module.loss(rows, rows_of_targets(len(rows)))  # type: ignore[operator]
        return loss + _weighted(module.outputs(raws[0]))  # type: ignore[operator]
    given = subject.bag() if bag is None else bag
    output = module(given)
    values = fields(output, len(given))
    values.pop("scores", None)
    values.pop("kept", None)
    terms = dict(getattr(output, "losses", {}))
    predictions: Mapping[str, Prediction] = getattr(output, "predictions", {})
    values.update({f"prediction {name}": p.logits for name, p in predictions.items()})
    return _weighted({**values, **terms})


def _weighted(values: Mapping[str, Tensor]) -> Tensor:
    """Sum of all values, each with its own fixed random factor."""
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros(())
    for name in sorted(values):
        value = values[name]
        if value.is_floating_point():
            factors = torch.rand(value.shape, generator=generator) + 0.5
            total = total + (value * factors.to(value)).sum()
    return total


def check_same(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, factor: float = 1.0
) -> None:
    """Fail unless both hold the same names with values within `SAME` (times `factor`)."""
    require(set(actual) == set(expected), f"{what}: {sorted(actual)} instead of {sorted(expected)}")
    for name, wanted in expected.items():
        got = actual[name]
        require(
            got.shape == wanted.shape,
            f"{what}: {name} is {tuple(got.shape)} instead of {tuple(wanted.shape)}",
        )
        off = deviation(got, wanted)
        allowed = factor * (SAME["atol"] + SAME["rtol"] * largest(wanted))
        require(off <= allowed, f"{what}: {name} is off by {off:.3g}, allowed {allowed:.3g}")


def check_different(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], message: str
) -> None:
    """Fail when no field of the two differs."""
    for name in set(actual) & set(expected):
        got, wanted = actual[name], expected[name]
        if got.shape != wanted.shape:
            return
        if deviation(got, wanted) > DIFFERENT * largest(wanted):
            return
    raise CheckError(message)


def deviation(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    return float(torch.nan_to_num(a.double() - b.double(), nan=torch.inf).abs().max())


def largest(values: Tensor) -> float:
    return float(values.double().abs().max()) if values.numel() else 0.0


def check_finite(values: Mapping[str, Tensor], what: str) -> None:
    for name, value in values.items():
        require(bool(torch.isfinite(value).all()), f"{what}: {name} holds NaN or infinity")
