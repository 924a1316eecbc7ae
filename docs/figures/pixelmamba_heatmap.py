"""Draws pixelmamba-heatmap.png of docs/pixelmamba.md, and prints how well regions are found.

    python docs/figures/pixelmamba_heatmap.py wsizoo-demo regions RUN

Arguments: the folder of `wsizoo demo`, regions of its slides, a run of pixel-mamba-tiny on them.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import wsizoo
from wsizoo.demo.cohort import plan
from wsizoo.measures.metrics import roc_auc
from wsizoo.slides.reader import open_slide
from wsizoo.viz.colour import normalise
from wsizoo.viz.heatmap import overlay

EDGE, GAP = 280, 6  # px of a panel, and between them
NEST = 0.25  # share of a region that is tumour nest, from which it counts as tumour; none: normal
STEP = 8  # level-0 px of a value of the demo's maps
INK = (20, 20, 20)
SHOWN = ("scores, fused", "scores, not fused", "tumour logit, not fused")

Maps = dict[str, NDArray[np.float64]]


def nests(name: str) -> NDArray[np.bool_]:
    """Where tumour was drawn on a slide of the demo, a value per 8 level-0 px."""
    return plan(int(name.removeprefix("demo-"))).nests > 0.5


def truth_of(name: str, bag: wsizoo.Bag) -> NDArray[np.float64]:
    """(N,) share of each region that is tumour nest."""
    drawn, edge = nests(name), round(bag.footprint / STEP)
    corners = (bag.coords // STEP).tolist()
    return np.array([drawn[y : y + edge, x : x + edge].mean() for x, y in corners])


def maps_of(run: Path, bag: wsizoo.Bag) -> Maps:
    """(N,) each: what may tell tumour regions from others, larger is more."""
    found: Maps = {}
    asked = {"fused": (), "not fused": ("aggregator.alpha=0.0",)}
    for name, overrides in asked.items():
        found |= {f"{what}, {name}": v for what, v in answers(wsizoo.load(run, *overrides), bag)}
    untrained = wsizoo.build("pixel-mamba-tiny", "head.classes=[a,b]", asked["not fused"][0])
    found["scores, not fused, not trained"] = answers(untrained, bag)[0][1]
    found["darkness, no model"] = -bag.features.double().mean((1, 2, 3)).numpy()
    return found


def answers(model: wsizoo.SlideModel, bag: wsizoo.Bag) -> list[tuple[str, NDArray[np.float64]]]:
    """Scores, and logits of tumour less those of normal, of the final region of each: (N,)."""
    with torch.inference_mode():
        seen = model.eval().aggregator.look(bag)
        logits = model.head.linear(seen.regions[0])[seen.region_of[0]]  # (N, 2)
        scores = model(bag).scores
    return [("scores", scores.numpy()), ("tumour logit", (logits[:, 1] - logits[:, 0]).numpy())]


def measure(slides: list[str], regions: Path, run: Path) -> tuple[dict[str, list[float]], list]:
    """AUC of every map on every slide, and the maps."""
    measured: dict[str, list[float]] = {}
    kept = []
    for name in slides:
        bag = wsizoo.read_bag(regions / f"{name}.h5")
        share, maps = truth_of(name, bag), maps_of(run, bag)
        clear = (share >= NEST) | (share == 0)
        for what, values in maps.items():
            auc = roc_auc((share >= NEST)[clear].astype(int), values[clear])
            measured.setdefault(what, []).append(auc)
        kept.append((name, bag, maps))
    return measured, kept


def tell(measured: dict[str, list[float]]) -> None:
    """Means over the slides, with an interval of resampled slides."""
    rng = np.random.default_rng(0)
    for what, values in measured.items():
        picked = rng.integers(0, len(values), (2000, len(values)))
        low, high = np.percentile(np.array(values)[picked].mean(1), (2.5, 97.5))
        each = ", ".join(f"{v:.2f}" for v in values)
        told = f"{what:<32} {np.mean(values):.3f} ({low:.3f} to {high:.3f}): {each}\n"
        sys.stdout.write(told)


def draw(slide: Path, bag: wsizoo.Bag, maps: Maps, out: Path) -> None:
    """Where tumour was drawn; then the maps, in colours of their ranks."""
    with open_slide(slide) as opened:
        image, downsample = opened.thumbnail(EDGE)
    panels = [outlined(image, nests(slide.stem))]
    for what in SHOWN:
        heat = overlay(image, downsample, bag.coords, bag.footprint, normalise(maps[what]))
        panels.append(outlined(heat, nests(slide.stem)))
    spaced = [np.pad(p, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for p in panels]
    joined = np.concatenate(spaced, 1)[:, :-GAP]
    Image.fromarray(joined).quantize(128).save(out, optimize=True)


def outlined(image: NDArray[np.uint8], drawn: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image with a line around what is True in a map of the whole slide."""
    size = (image.shape[1], image.shape[0])
    inside = np.asarray(Image.fromarray(drawn).resize(size))
    core = inside.copy()
    for axis in (0, 1):
        for by in (1, -1):
            core &= np.roll(inside, by, axis)
    found = image.copy()
    found[inside & ~core] = INK
    return found


def main(demo: Path, regions: Path, run: Path) -> None:
    """Held-out slides with tumour: what finds it in them, and a picture of one."""
    with open(demo / "table.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["part"], r["tumour"]) == ("test", "tumour")]
    measured, kept = measure([row["slide"] for row in rows], regions, run)
    tell(measured)
    middle = np.argsort(measured["scores, fused"])[len(rows) // 2]  # neither the best nor the worst
    name, bag, maps = kept[middle]
    out = Path(__file__).with_name("pixelmamba-heatmap.png")
    draw(demo / "slides" / f"{name}.svs", bag, maps, out)
    sys.stdout.write(f"{out}: {name}\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
