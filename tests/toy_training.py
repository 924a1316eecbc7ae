"""A training for tests that draws on everything a resume must bring back; also as a program.

`python toy_training.py die FOLDER WHEN` is killed while it reads slide number WHEN of all it shows
(or, "write-3", while it writes its third last.ckpt); `... share FOLDER` is run by torchrun.
"""

import os
import random
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Aggregated, Aggregator, SlideOutput
from wsizoo.mil.heads import ClassificationHead
from wsizoo.model import SlideModel
from wsizoo.spec import ModelSpec
from wsizoo.train.settings import TrainSettings
from wsizoo.train.trainer import Trained, train_model

SPEC = ModelSpec(summary="s", licence="MIT", source="x")
DIM = 6
SETTINGS = TrainSettings(
    epochs=4, batch_size=1, accumulate=2, lr=3e-2, warmup_epochs=0.5, clip=0.5, ema=0.6,
    max_patches=7, checkpoint_steps=2, optimiser="radam", patience=9, seed=5,
)  # fmt: skip


class Restless(Aggregator):
    """Draws from all three global generators; its teacher, a buffer, does so after each step.

    Args:
        poisoned: the slide whose embedding is not a number.
    """

    teacher: torch.Tensor

    def __init__(self, poisoned: str = "") -> None:
        super().__init__(DIM, DIM)
        self.linear = nn.Linear(DIM, DIM)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("teacher", torch.zeros(DIM, DIM))
        self.poisoned = poisoned

    def forward(self, bag: Bag) -> Aggregated:
        slide = F.dropout(self.linear(bag.features), 0.3, self.training).mean(0)
        if self.training:
            slide = slide + 0.1 * random.random() + 0.1 * float(np.random.random())
        if bag.slide_id == self.poisoned:
            slide = slide * float("nan")
        taught = F.linear(bag.features, self.teacher).mean(0)
        losses = {"teacher": 0.1 * (slide - taught).square().mean()} if self.training else {}
        return Aggregated(slide, losses=losses)

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        slow = {"params": [self.linear.bias], "lr": base_lr / 10}
        return [{"params": [self.linear.weight]}, slow, {"params": [*self.unused.parameters()]}]

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.teacher.normal_()

    def after_step(self, step: int, total_steps: int) -> None:
        noise = random.random() * torch.rand(()) * step / total_steps
        self.teacher.lerp_(self.linear.weight.detach(), 0.5 + 0.1 * float(noise))


def toy_model(poisoned: str = "", requires: Fingerprint | None = None) -> SlideModel:
    torch.manual_seed(0)
    body, head = Restless(poisoned), ClassificationHead(DIM, ("a", "b"))
    return SlideModel("toy", SPEC, DIM, aggregator=body, head=head, requires=requires)


class ToySlides(Sequence[Bag]):
    """Slides of two classes, the same ones for the same seed.

    Args:
        read: indices that were read. die: kill this process at this read, from 0.
    """

    def __init__(self, count: int, seed: int = 0, die: int | None = None) -> None:
        self.count, self.seed, self.die = count, seed, die
        self.names = [f"s{i}" for i in range(count)]
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if index >= self.count:
            raise IndexError(index)
        if len(self.read) == self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        self.read.append(index)
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        features = torch.randn(5 + index, DIM, generator=generator)
        features[:, 0] += 2.0 * (index % 2)
        coords = torch.stack([torch.arange(len(features)), torch.zeros(len(features))], 1).long()
        name, label = f"s{index}", {"label": index % 2}
        return Bag(features, coords, 1.0, encoder=Fingerprint("uni"), slide_id=name, target=label)


def augment(bag: Bag, generator: torch.Generator, progress: float) -> Bag:
    noise = torch.randn(bag.features.shape, generator=generator)
    return bag.replace(features=bag.features + (0.2 - 0.1 * progress) * noise)


def note(model: SlideModel, index: int, bag: Bag, output: SlideOutput) -> list[Any]:
    random.random(), torch.rand(1)  # must not matter
    assert output.logits is not None
    return [index, bag.slide_id, output.logits.tolist()]


def measure(model: SlideModel, notes: Sequence[Any]) -> dict[str, float]:
    random.random(), torch.rand(1)  # must not matter
    assert [(index, slide) for index, slide, _ in notes] == [(i, f"s{i}") for i in range(3)]
    first = sum((index + 1) * logits[0] for index, _, logits in notes)
    return {"weight": float(model.state_dict()["head.linear.weight"].sum()), "logit": first}


def train_toy(folder: Path, slides: ToySlides, **more: Any) -> Trained:
    settings = more.pop("settings", SETTINGS)
    model = more.pop("model", None) or toy_model()
    options = {"augment": augment, "note": note, "measure": measure, **more}
    return train_model(model, slides, ToySlides(3, seed=1), settings, folder, **options)


def die(folder: str, when: str) -> None:
    if when.startswith("write-"):
        _die_in_write(int(when[6:]))
        train_toy(Path(folder), ToySlides(7))
    else:
        train_toy(Path(folder), ToySlides(7, die=int(when)))


def _die_in_write(number: int) -> None:
    """Have the process killed in the middle of its write of last.ckpt of this number."""
    real, count = torch.save, 0

    def save(content: dict[str, Any], file: Any) -> None:
        nonlocal count
        count += "stepper" in content
        if count == number:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real(content, file)

    torch.save = save


SHARED = TrainSettings(epochs=2, lr=3e-2, clip=0.5, ema=0.6, seed=5)


def share(folder: str) -> None:
    """Train in two processes; each says what it ended with in a file of its own."""
    rank, out = int(os.environ["RANK"]), Path(folder)
    slides, model = ToySlides(5), toy_model()
    train_toy(out / f"by-{rank}", slides, settings=SHARED, model=model)
    torch.save({"model": model.state_dict(), "read": sorted(slides.read)}, out / f"{rank}.pt")
    try:
        poisoned = toy_model(poisoned="s3")
        train_toy(out / f"poisoned-by-{rank}", ToySlides(5), settings=SHARED, model=poisoned)
    except DataError as error:
        (out / f"{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    {"die": die, "share": share}[sys.argv[1]](*sys.argv[2:])
