"""A training with a selector, for tests; also as a program.

`python program.py die FOLDER READ` is killed at this read of a slide to train on; torchrun runs
`... share FOLDER`.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import wsizoo
from wsizoo import Bag, Fingerprint
from wsizoo.errors import DataError
from wsizoo.train.settings import TrainSettings
from wsizoo.train.trainer import train_model

DIM = 6
MODEL = (
    "abmil-uni", f"encoder.dim={DIM}", "aggregator.dim=5", "aggregator.attention=4",
    "head.classes=[a,b]", "selector.k=3", "selector.warm_up=0.25", "selector.tune=0.25",
)  # fmt: skip
SETTINGS = TrainSettings(
    epochs=4, lr=3e-2, clip=0.5, accumulate=2, ema=0.6, checkpoint_steps=2, seed=5
)
SHARED = TrainSettings(epochs=4, lr=3e-2, clip=0.5, seed=5)


class Slides(Sequence):
    """The same slides of two classes for the same seed; at the read `die` comes `stop`."""

    def __init__(self, count, seed=0, die=None, stop=None):
        self.count, self.seed, self.die, self.stop = count, seed, die, stop

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        if self.die is not None:
            self.die -= 1
            if self.die < 0:
                self.stop()
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        features = torch.randn(8 + index, DIM, generator=generator)
        features[:2, index % 2] += 4.0
        made, label = Fingerprint("uni"), {"label": index % 2}
        return Bag(features, encoder=made, slide_id=f"s{index}", target=label)


def model_of(selector="sparselearn", *overrides):
    name, *more = MODEL
    if selector == "abmil-score":
        more = [text for text in more if "tune" not in text]
    if selector in ("random", "norm"):
        more = [text for text in more if "warm_up" not in text and "tune" not in text]
    return wsizoo.build(name, f"selector={selector}", *more, *overrides, seed=1)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise DataError("a read failed")


def train(folder, model, die=None, stop=kill, settings=SETTINGS):
    slides = Slides(7, die=die, stop=stop)
    return train_model(model, slides, Slides(3, seed=1), settings, Path(folder))


def share(folder):
    model = model_of()
    train(Path(folder) / f"by-{os.environ['RANK']}", model, settings=SHARED)
    torch.save(model.state_dict(), Path(folder) / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    what, folder, *more = sys.argv[1:]
    if what == "die":
        train(folder, model_of(), die=int(more[0]))
    else:
        share(folder)
