"""Pre-training on a folder of images: each image is one region, so nothing is fused.

    python -m wsizoo_plugin_pixelmamba.pretraining IMAGES/train OUT [KEY=VALUE ...]

The keys, and where they are from: `configs/imagenet.yaml` beside this file. OUT is a folder of
`wsizoo.save`, which `init:` of a run takes; `OUT.state.pt` beside it, from which the same command
goes on after an interruption. One process; gradients are added up over `images_at_once`.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import wsizoo
from wsizoo.errors import DataError
from wsizoo.overrides import lay_over
from wsizoo.structured import structured
from wsizoo.yaml_data import read_yaml
from wsizoo_plugin_pixelmamba.images import ImageFolder, centre_crop, erase, random_crop

log = logging.getLogger(__name__)
CONFIG = Path(__file__).parent / "configs" / "imagenet.yaml"


@dataclass
class Pretraining:
    """How a network is pre-trained; every key of `configs/imagenet.yaml`.

    Args:
        size: of the network. edge: of the images it sees, px.
        batch_size: images a step. images_at_once: of them, in memory.
        lr, start_lr, end_lr: the highest rate, that before the warm-up, that at the end.
        mixup: alpha of the Beta distribution that weights pairs of images; 0: none.
        erasing: share of the images in which a rectangle is erased.
        least_crop: smallest share of an image's area that a crop has.
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
    device: str

    def rate(self, epoch: float) -> float:
        """Learning rate after so many epochs (fractions too)."""
        if epoch < self.warmup_epochs:
            return self.start_lr + (self.lr - self.start_lr) * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.end_lr + (self.lr - self.end_lr) * (1 + math.cos(math.pi * done)) / 2


def read_config(overrides: Sequence[str] = (), file: Path = CONFIG) -> Pretraining:
    """The keys of a file, others laid over. Raises SpecError: an unknown key, a wrong type."""
    content = read_yaml(file.read_text(encoding="utf-8"))
    for text in overrides:
        lay_over("pre-training", content, text)
    return structured(Pretraining, "pre-training", content)


def pretrain(folder: Path | str, out: Path | str, config: Pretraining) -> wsizoo.SlideModel:
    """Train on `folder/<class>/*.jpg` and save the model in `out`.

    Raises:
        DataError: no images by class, or a state beside `out` that is of another config.
    """
    images = ImageFolder.of(Path(folder))
    names = ",".join(f'"{name}"' for name in images.classes)
    told = (f"head.classes=[{names}]", f"encoder.patch_size={config.edge}")
    model = wsizoo.build(f"pixel-mamba-{config.size}", *told, seed=config.seed)
    run = _Run(model.to(config.device).train(), images, config, Path(f"{out}.state.pt"))
    for epoch in range(run.resume(), config.epochs):
        loss = run.epoch(epoch)
        log.info("epoch %d/%d  lr %.3g  loss %.4f", epoch + 1, config.epochs, run.lr, loss)
        run.keep(epoch + 1)
    model.trained = True
    model.facts = {"pre-training": asdict(config), "images": len(images)}
    wsizoo.save(model.eval(), out, overwrite=True)
    return model


class _Run:
    """Model, optimiser and the place reached."""

    def __init__(
        self, model: wsizoo.SlideModel, images: ImageFolder, config: Pretraining, state: Path
    ) -> None:
        self.model, self.images, self.config, self.state = model, images, config, state
        groups = model.param_groups(config.lr)
        self.optimiser = torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
        self.lr = config.lr

    def resume(self) -> int:
        """Epochs that an earlier run finished."""
        if not self.state.is_file():
            return 0
        kept = torch.load(self.state, map_location=self.config.device, weights_only=True)
        if kept["config"] != asdict(self.config):
            raise DataError(
                f"'{self.state}' is of another config: delete it, or choose another OUT"
            )
        self.model.load_state_dict(kept["model"])
        self.optimiser.load_state_dict(kept["optimiser"])
        return int(kept["epochs"])

    def keep(self, epochs: int) -> None:
        told = {"epochs": epochs, "config": asdict(self.config)}
        told |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        part = self.state.with_suffix(".part")
        torch.save(told, part)
        part.replace(self.state)

    def epoch(self, epoch: int) -> float:
        """One pass over the images; the mean loss. Its random numbers depend on the epoch alone."""
        rng = np.random.default_rng([self.config.seed, epoch])
        order, size = rng.permutation(len(self.images)), self.config.batch_size
        steps = max(1, len(order) // size)
        total = 0.0
        for step in range(steps):
            self.lr = self.config.rate(epoch + step / steps)
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr
            total += self.step(order[step * size : (step + 1) * size], rng)
        return total / steps

    def step(self, rows: Any, rng: np.random.Generator) -> float:
        """One change of the weights; the mean loss of its images."""
        self.optimiser.zero_grad(set_to_none=True)
        total, at_once = 0.0, self.config.images_at_once
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            loss = self.loss(part, rng) * (len(part) / len(rows))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self.optimiser.step()
        return total

    def loss(self, rows: Any, rng: np.random.Generator) -> Tensor:
        """Mean cross entropy () of these images, cut, erased and mixed in pairs."""
        config, network = self.config, self.model.aggregator
        cuts = [random_crop(self.images.open(i), config.edge, config.least_crop, rng) for i in rows]
        label = torch.tensor([self.images.labels[i] for i in rows], device=config.device)
        x = erase(network.normalised(torch.stack(cuts).to(config.device)), config.erasing, rng)
        share = rng.beta(config.mixup, config.mixup) if config.mixup else 1.0
        x = x * share + x.flip(0) * (1 - share)
        logits = self.logits(x)
        losses = [
            F.cross_entropy(logits, each, label_smoothing=config.label_smoothing)
            for each in (label, label.flip(0))
        ]
        return share * losses[0] + (1 - share) * losses[1]

    def logits(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, h, w), a region each, -> (B, classes) float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.bf16):
            slide = self.model.aggregator.network(x[:, None]).slide
        return self.model.head.linear(slide.float())


@torch.no_grad()
def top1(model: wsizoo.SlideModel, folder: Path | str, at_once: int = 64) -> float:
    """Share of the images of `folder/<class>/` whose class the model names.

    Raises:
        DataError: other classes than the model's.
    """
    images, network, edge = (
        ImageFolder.of(Path(folder)),
        model.aggregator,
        model.requires.patch_size,
    )
    if list(images.classes) != list(model.classes):
        raise DataError(f"'{folder}' has classes {images.classes}, the model {model.classes}")
    right = 0
    for start in range(0, len(images), at_once):
        rows = range(start, min(start + at_once, len(images)))
        cuts = torch.stack([centre_crop(images.open(i), edge) for i in rows]).to(model.device)
        slide = network.network(network.normalised(cuts)[:, None]).slide
        found = model.head.linear(slide).argmax(1).tolist()
        right += sum(images.labels[i] == one for i, one in zip(rows, found, strict=True))
    return right / len(images)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m wsizoo_plugin_pixelmamba.pretraining")
    parser.add_argument("images", help="folder with a folder of images a class")
    parser.add_argument("out", help="folder of the trained model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"keys of {CONFIG}")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        pretrain(given.images, given.out, read_config(given.overrides))
    except wsizoo.WsizooError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
