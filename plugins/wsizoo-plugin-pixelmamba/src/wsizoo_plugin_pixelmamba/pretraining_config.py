"""How a pre-training is configured: its keys, checked before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from wsizoo.errors import SpecError
from wsizoo.overrides import lay_over
from wsizoo.structured import structured
from wsizoo.yaml_data import read_yaml
from wsizoo_plugin_pixelmamba.settings import Settings

CONFIG = Path(__file__).parent / "configs" / "imagenet.yaml"
COUNTS = ("epochs", "batch_size", "images_at_once", "edge", "log_steps", "state_steps")
RANGES = {
    "lr": (0, math.inf),
    "start_lr": (0, math.inf),
    "end_lr": (0, math.inf),
    "warmup_epochs": (0, math.inf),
    "weight_decay": (0, math.inf),
    "label_smoothing": (0, 1),
    "mixup": (0, math.inf),
    "erasing": (0, 1),
    "least_crop": (0, 1),
    "seed": (0, math.inf),
    "workers": (0, math.inf),
}
CHANGE_NO_NUMBER = frozenset({"validation", "workers", "log_steps", "state_steps", "device"})


@dataclass
class Pretraining:
    """How a network is pre-trained; every key of `configs/imagenet.yaml`.

    Args:
        size: of the network. edge: of the images it sees, px.
        batch_size: images a step. images_at_once: of them, in the memory of a process, even.
        lr, start_lr, end_lr: the highest rate, that before the warm-up, that at the end.
        mixup: alpha of the Beta distribution that weights pairs of images; 0: none.
        erasing: share of the images in which a rectangle is erased.
        least_crop: smallest share of an image's area that a crop has.
        vim: file of a published Vim whose layers are taken where they fit; null: none.
        validation: folder of images by class whose top-1 is told after each epoch; null: none.
        workers: threads that read images, in each process.
        log_steps, state_steps: steps after which progress is told, and all is kept to go on from.
        device: auto, cpu, cuda, cuda:0; under torchrun each process has the GPU of its rank.
    """

    size: str
    epochs: int
    batch_size: int
    images_at_once: int
    lr: float
    start_lr: float
    end_lr: float
    warmup_epochs: float
    weight_decay: float
    label_smoothing: float
    mixup: float
    erasing: float
    least_crop: float
    edge: int
    bf16: bool
    seed: int
    vim: str | None
    validation: str | None
    workers: int
    log_steps: int
    state_steps: int
    device: str

    def __post_init__(self) -> None:
        """Raises SpecError: a value that a key cannot have."""
        for name in COUNTS:
            if getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "1 or more")
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                to = f"to {most}" if math.isfinite(most) else "or more"
                _refuse(name, getattr(self, name), f"{least} {to}")
        if self.mixup and self.images_at_once % 2:
            _refuse("images_at_once", self.images_at_once, "an even number, as pairs are mixed")
        step = max(Settings(size=self.size).step)
        if self.edge % step:
            near = max(round(self.edge / step), 1) * step
            _refuse("edge", self.edge, f"a multiple of {step}, such as edge={near}")

    def rate(self, epoch: float) -> float:
        """Learning rate after so many epochs (fractions too)."""
        if epoch < self.warmup_epochs:
            return self.start_lr + (self.lr - self.start_lr) * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.end_lr + (self.lr - self.end_lr) * (1 + math.cos(math.pi * done)) / 2

    def numbers(self) -> dict[str, Any]:
        """The keys that the trained numbers depend on."""
        return {k: v for k, v in asdict(self).items() if k not in CHANGE_NO_NUMBER}


def read_config(overrides: Sequence[str] = (), file: Path = CONFIG) -> Pretraining:
    """The keys of a file, others laid over.

    Raises:
        SpecError: an unknown key, a wrong type, a value that cannot be.
    """
    content = read_yaml(file.read_text(encoding="utf-8"))
    for text in overrides:
        lay_over("pre-training", content, text)
    return structured(Pretraining, "pre-training", content, typed=True)


def _refuse(name: str, value: Any, need: str) -> NoReturn:
    raise SpecError(f"pre-training: {name} is {value}, expected {need}")
