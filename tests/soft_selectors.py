"""A plugin with two toy selectors, one that learns softly, and a cohort for them; for tests."""

import importlib.metadata
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

import wsizoo
from tests.toy_cohort import DIM, made, save_labels, write_table
from wsizoo import Bag, Component, Selected
from wsizoo.plugins import discover
from wsizoo.registry import Registry
from wsizoo.selection import ScoredSelector, SoftSelector, given_gates
from wsizoo.slides.store import write_bag

wsizoo_api = 1
K = 4
CLASSES = ("benign", "malign")


class Toy(SoftSelector):
    """Scores by a linear map; the gate mixes noise in, and a small layer follows it."""

    ablations: ClassVar = {"without denoiser": "selector.denoiser=false"}
    only_in_training: ClassVar = ("step", "total", "denoise")

    def __init__(self, in_dim: int, k: int | float = K, denoiser: bool = True, **options):
        super().__init__(in_dim, k, **options)
        self.line = nn.Linear(in_dim, 1)
        self.denoise = nn.Linear(in_dim, in_dim) if denoiser else None
        if self.denoise is not None:
            nn.init.zeros_(self.denoise.weight)
            nn.init.zeros_(self.denoise.bias)

    def score(self, bag: Bag) -> Tensor:
        return self.line(bag.features)[:, 0].float()

    def soft(self, bag, generator=None, temperature=None, gates=None) -> Selected:
        scores = self.score(bag)
        found = self.gates(scores, temperature) if gates is None else given_gates(gates)
        shape = bag.features.shape
        noise = torch.randn(shape, generator=generator, device=bag.device)
        mixed = found.root[:, None] * bag.features + found.rest_root[:, None] * noise
        if self.denoise is not None:
            mixed = mixed + self.denoise(mixed)
        return Selected(bag.replace(features=mixed), scores=scores)


class HardOnly(ScoredSelector):
    """Scores by the first feature and learns nothing."""

    def score(self, bag: Bag) -> Tensor:
        return bag.features[:, 0].float()


@wsizoo.hookimpl
def wsizoo_components() -> list[Component]:
    return [
        Component("selector", "toy-soft", "tests.soft_selectors:Toy", "a toy", "a test"),
        Component("selector", "toy-hard", "tests.soft_selectors:HardOnly", "a toy", "a test"),
    ]


def registry() -> Registry:
    """The core's, and this plugin."""
    point = importlib.metadata.EntryPoint("toy-soft", "tests.soft_selectors", "wsizoo")
    return Registry.of(discover([point]))


def write_needles(folder: Path, slides: int = 24, patches: int = 30, needles: int = 3) -> None:
    """`slides.csv` and `features/`: of a malign slide, `needles` patches differ; half of it tests.

    The first feature marks needles of both classes, the second tells the class.
    """
    rows = []
    for i in range(slides):
        label = i % 2
        generator = torch.Generator().manual_seed(i)
        features = torch.randn(patches, DIM, generator=generator) * 0.3
        at = torch.randperm(patches, generator=generator)[:needles]
        features[at, 0] += 4
        features[at, 1] += 4 * (2 * label - 1)
        write_bag(made(features), folder / "features" / f"s{i:02}.h5")
        save_labels(folder / "patches" / f"s{i:02}.csv", [j in at for j in range(patches)])
        part = "train" if i < slides // 2 else "val" if i < 2 * slides // 3 else "test"
        row = {"slide": f"s{i:02}", "patient": f"P{i:02}", "site": "A", "label": CLASSES[label]}
        target = {"time": 9.0 - 6 * label + 0.1 * i, "event": int(i % 5 != 0), "value": label}
        rows.append({**row, **target, "part": part})
    write_table(folder / "slides.csv", rows)
