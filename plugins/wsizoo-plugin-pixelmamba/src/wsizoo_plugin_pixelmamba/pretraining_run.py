"""The loop of a pre-training: steps over all processes, going on within an epoch, top-1."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo import SlideModel
from wsizoo.errors import DataError
from wsizoo.train.checkpointing import read_checkpoint, write_checkpoint
from wsizoo.train.processes import alike_everywhere, sum_gradients, sums
from wsizoo_plugin_pixelmamba.images import ImageFolder, ahead, centre_crop, erase, random_crop
from wsizoo_plugin_pixelmamba.pretraining_config import Pretraining

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)
Cut: TypeAlias = tuple[int, Tensor, np.random.Generator]  # label, (3, h, w) uint8, the image's own


class Run:
    """Model, optimiser and the place reached.

    Args:
        state: file from which the same run goes on.

    Attributes:
        epoch, step: the next ones. lr: of the last step. loss: sum over this epoch's steps.
    """

    def __init__(
        self,
        model: SlideModel,
        images: ImageFolder,
        config: Pretraining,
        state: Path,
        fabric: Fabric,
    ) -> None:
        self.model, self.images, self.config, self.state = model, images, config, state
        self.fabric, self.first = fabric, fabric.is_global_zero
        groups = model.param_groups(config.lr)
        self.optimiser = torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
        self.steps = max(1, len(images) // config.batch_size)
        self.epoch, self.step, self.lr, self.loss = 0, 0, config.lr, 0.0
        whose = {"images": len(images), "classes": list(images.classes)}
        self.identity = {**config.numbers(), **whose}

    def resume(self) -> None:
        """Go on where an earlier run was. Raises DataError: its state is of another."""
        if self.state.is_file():
            kept = read_checkpoint(self.state)
            for name, mine in self.identity.items():
                there = kept["identity"].get(name)
                if there != mine:
                    raise DataError(
                        f"'{self.state}' is of another pre-training: {name} was {there}, now "
                        f"{mine}. Delete it, or choose another OUT"
                    )
            self.epoch, self.step, self.loss = kept["epoch"], kept["step"], kept["loss"]
            self.model.load_state_dict(kept["model"])
            self.optimiser.load_state_dict(kept["optimiser"])
            if self.first:
                log.info("going on at epoch %d, step %d", self.epoch + 1, self.step + 1)
        alike_everywhere(self.fabric, self.model)

    def keep(self) -> None:
        if self.first:
            place = {"epoch": self.epoch, "step": self.step, "loss": self.loss}
            told = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
            write_checkpoint(self.state, {"identity": self.identity, **place, **told})

    def finish_epoch(self) -> float:
        """The steps that are left of an epoch; its mean loss.

        Random numbers depend on the epoch and the image alone.
        """
        config, began, first = self.config, time.monotonic(), self.step
        plan = self.plan()[first:]
        order = [i for parts in plan for part in parts for i in part]
        with closing(ahead(self.cut, order, config.workers)) as reader:
            for parts in plan:
                self.loss += self.do(parts, reader)
                self.step += 1
                if self.first and self.step % config.log_steps == 0:
                    pace = (self.step - first) * self.images_a_step / (time.monotonic() - began)
                    done = (self.epoch + 1, config.epochs, self.step, self.steps, self.lr)
                    mean = self.loss / self.step
                    told = "epoch %d/%d  step %d/%d  lr %.3g  loss %.4f  %.3g images/s"
                    log.info(told, *done, mean, pace)
                if self.step % config.state_steps == 0 and self.step < self.steps:
                    self.keep()
        mean = self.loss / self.steps
        self.epoch, self.step, self.loss = self.epoch + 1, 0, 0.0
        return mean

    @property
    def images_a_step(self) -> int:
        return min(self.config.batch_size, len(self.images))

    def plan(self) -> list[list[list[int]]]:
        """This process's images of this epoch: steps, of what is in memory at once."""
        rng = np.random.default_rng([self.config.seed, self.epoch])
        order = rng.permutation(len(self.images)).tolist()
        size, at_once = self.images_a_step, self.config.images_at_once
        rank, world = self.fabric.global_rank, self.fabric.world_size
        steps = (order[step * size : (step + 1) * size] for step in range(self.steps))
        return [
            [rows[i : i + at_once] for i in range(0, size, at_once)][rank::world] for rows in steps
        ]

    def cut(self, i: int) -> Cut:
        """A random part of an image."""
        rng = np.random.default_rng([self.config.seed, self.epoch, i])
        image = self.images.open(i)
        crop = random_crop(image, self.config.edge, self.config.least_crop, rng)
        return self.images.labels[i], crop, rng

    def do(self, parts: Sequence[Sequence[int]], reader: Iterator[Cut]) -> float:
        """One change of the weights; the mean loss of all processes' images.

        Raises:
            DataError: it is not finite.
        """
        self.lr = self.config.rate(self.epoch + self.step / self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        self.optimiser.zero_grad(set_to_none=True)
        own = 0.0
        for part in parts:
            loss = self.mean_loss([next(reader) for _ in part]) * (len(part) / self.images_a_step)
            loss.backward()  # type: ignore[no-untyped-call]
            own += loss.item()
        (total,) = sums(self.fabric, [own])
        if not math.isfinite(total):
            raise DataError(
                f"the loss is {total} in epoch {self.epoch + 1}, step {self.step + 1}; what was "
                "kept before is as it was. Train with a smaller rate, as lr=1e-4"
            )
        sum_gradients(self.fabric, self.model.parameters())
        self.optimiser.step()
        return total

    def mean_loss(self, cuts: Sequence[Cut]) -> Tensor:
        """Mean cross entropy () of these images, erased and mixed in pairs of neighbours."""
        config, network = self.config, self.model.aggregator
        labels, pixels, rngs = zip(*cuts, strict=True)
        device = self.model.device
        x = network.normalised(torch.stack(pixels).to(device))
        x = erase(x, config.erasing, rngs)
        other = [min(i ^ 1, len(cuts) - 1) for i in range(len(cuts))]
        drawn = [rng.beta(config.mixup, config.mixup) if config.mixup else 1.0 for rng in rngs]
        pairs = [drawn[i - i % 2] for i in range(len(cuts))]
        share = torch.tensor(pairs, dtype=x.dtype, device=device)  # (B,), one a pair
        of_pixels = share[:, None, None, None]
        logits = self.logits(x * of_pixels + x[other] * (1 - of_pixels))
        label = torch.tensor(labels, device=device)
        losses = [
            F.cross_entropy(logits, each, label_smoothing=config.label_smoothing, reduction="none")
            for each in (label, label[other])
        ]
        return (share * losses[0] + (1 - share) * losses[1]).mean()

    def logits(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, h, w), a region each, -> (B, classes) float32."""
        return _logits(self.model, x, self.config.bf16)


def _logits(model: SlideModel, x: Tensor, bf16: bool = False) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        slide = model.aggregator.network(x[:, None]).slide
    return model.head.linear(slide.float())


@torch.no_grad()
def top1(
    model: SlideModel,
    folder: Path | str,
    edge: int,
    at_once: int = 64,
    workers: int = 0,
    fabric: Fabric | None = None,
) -> float:
    """Share of the images of `folder/<class>/` whose class the model names.

    Args:
        edge: px of the images that the model sees. fabric: of the processes that share the work.

    Raises:
        DataError: other classes than the model's.
    """
    images = check_classes(ImageFolder.of(Path(folder)), model.classes, folder)
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    own = range(rank, len(images), world)
    right = 0

    def cut(i: int) -> Tensor:
        return centre_crop(images.open(i), edge)

    with closing(ahead(cut, own, workers)) as reader:
        for start in range(0, len(own), at_once):
            rows = own[start : start + at_once]
            cuts = torch.stack([next(reader) for _ in rows]).to(model.device)
            found = _logits(model, model.aggregator.normalised(cuts)).argmax(1).tolist()
            right += sum(images.labels[i] == one for i, one in zip(rows, found, strict=True))
    (total,) = sums(fabric, [right]) if fabric else [right]
    return total / len(images)


def check_classes(images: ImageFolder, classes: Sequence[str], folder: Path | str) -> ImageFolder:
    """The images. Raises DataError: they are of other classes."""
    if list(images.classes) != list(classes):
        raise DataError(f"'{folder}' has classes {images.classes}, the model {list(classes)}")
    return images
