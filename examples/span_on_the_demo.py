"""SPAN beside ABMIL where the arrangement of the patches tells, on the slides of the demo.

    python examples/span_on_the_demo.py [SLIDES [SEEDS [FOLDER]]]

Needs wsizoo-plugin-span. Every synthetic slide holds twenty lymphoid foci, each in a patch of its
own: in two groups, or apart. Which of the two no patch shows by itself. Held-out slides answer
three questions, of a network that sees where patches lie and of one that does not: is the slide
clustered? Which patches are foci of a group? And, as a check, which are tumour, as a patch does
show? The figures in docs/span.md are those of 40 slides and 5 seeds.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import wsizoo
from wsizoo.augment import CoordinateAugmentation
from wsizoo.demo.cohort import CohortSlide, plan, write_cohort
from wsizoo.measures.metrics import Overlap, auc_interval, overlap, roc_auc
from wsizoo.train.loop import fit

# layers=011: none in the first stage, so that global tokens meet patches 2 x 2 at a time, and not
# each alone, by which training slides are soon known by heart.
WIDTHS = ("aggregator.dim=64", "aggregator.head_dim=32")
SPAN = ("span-mil-uni", "encoder=handcrafted-he", "aggregator.layers=011", *WIDTHS)
SMALL = ("aggregator.dim=32", "aggregator.head_dim=16")
SPAN_UNET = ("span-unet-uni", "encoder=handcrafted-he", *SMALL)
ABMIL = ("abmil-uni", "encoder=handcrafted-he", "aggregator.dim=128", "aggregator.attention=64")
EPOCHS = {"clustered": 60}  # else what `fit` does by default; the same for both networks
PER_PATCH = "{name: segmentation, one_logit: true, threshold: 0.2, dice_weight: 0.75}"
ABMIL_PATCHES = (*ABMIL, f"head={PER_PATCH}")  # as span-unet-uni has it

Cohort = list[tuple[CohortSlide, wsizoo.Bag]]
Parts = dict[str, list[wsizoo.Bag]]


def read_cohort(folder: Path, slides: int) -> Cohort:
    """Slides and their features; what an earlier call made is kept."""
    cohort = write_cohort(folder, slides)
    files, out = [slide.slide for slide in cohort], folder / "features"
    for found in wsizoo.extract(files, "handcrafted-he", out, workers=2):
        if found.reason:
            sys.exit(f"{found.slide_id}: {found.reason}")
    return [(slide, wsizoo.read_bag(out / f"{slide.name}.h5")) for slide in cohort]


def label_slides(cohort: Cohort) -> Parts:
    """The slides of each part, labelled 1 where clustered."""
    parts: Parts = {"train": [], "test": []}
    for slide, bag in cohort:
        parts[slide.part].append(bag.replace(target={"label": slide.clustered}))
    return parts


def label_patches(cohort: Cohort, positive: str) -> Parts:
    """The slides of each part; of each patch the share that is tumour, or 1 for a group's focus."""
    parts: Parts = {"train": [], "test": []}
    for slide, bag in cohort:
        cells = np.load(slide.truth)  # (24, 24), [row, column], share of tumour
        if positive == "group":
            column, row = plan(int(slide.name.removeprefix("demo-"))).foci.T
            cells = np.zeros_like(cells)
            cells[row, column] = slide.clustered
        column, row = bag.grid().numpy().T
        labels = torch.from_numpy(cells[row, column])  # (N,)
        parts[slide.part].append(bag.replace(target={"instances": labels}))
    return parts


def train(
    recipe: tuple[str, ...], parts: Parts, classes: str, seed: int, epochs: int
) -> wsizoo.SlideModel:
    """The same effort for all, the slides turned and mirrored."""
    name, *overrides = recipe
    model = wsizoo.build(name, *overrides, f"head.classes=[{classes}]", seed=seed)
    augment = CoordinateAugmentation()
    fit(model, parts["train"], epochs=epochs, seed=seed, augment=augment)
    return model


def measure_slides(model: wsizoo.SlideModel, test: list[wsizoo.Bag]) -> str:
    """AUC with its 95 % interval."""
    truth = np.array([bag.target["label"] for bag in test])
    with torch.inference_mode():
        logits = torch.stack([model(bag).logits for bag in test])  # (n, 2)
    scores = (logits[:, 1] - logits[:, 0]).double().numpy()
    low, high = auc_interval(truth, scores)
    return f"AUC  {roc_auc(truth, scores):.3f} ({low:.3f} to {high:.3f})"


def measure_patches(model: wsizoo.SlideModel, test: list[wsizoo.Bag]) -> str:
    """Dice and IoU of the patches of all slides; 95 % interval by drawing slides anew."""
    limit = model.head.threshold
    with torch.inference_mode():
        called = [model(bag).instance_logits[:, 0].sigmoid() >= limit for bag in test]
    truth = [bag.target["instances"] >= limit for bag in test]

    def pooled(slides: np.ndarray) -> Overlap:
        return overlap(*(torch.cat([flags[i] for i in slides]) for flags in (truth, called)))

    drawn = np.random.default_rng(0).integers(len(test), size=(1000, len(test)))
    low, high = np.quantile([pooled(slides).dice for slides in drawn], (0.025, 0.975))
    found = pooled(np.arange(len(test)))
    return f"Dice {found.dice:.3f} ({low:.3f} to {high:.3f})  IoU {found.iou:.3f}"


def main(slides: int, seeds: int, folder: Path) -> None:
    """Train, measure, and draw what the last network of each question says of a held-out slide."""
    torch.set_num_threads(1)  # networks this small are faster so
    cohort = read_cohort(folder, slides)
    shown = next(slide for slide, _ in cohort if slide.part == "test" and slide.clustered)
    questions = (
        ("clustered", "scattered,clustered", (ABMIL, SPAN), label_slides(cohort)),
        ("group", "other,group", (ABMIL_PATCHES, SPAN_UNET), label_patches(cohort, "group")),
        ("tumour", "other,tumour", (ABMIL_PATCHES, SPAN_UNET), label_patches(cohort, "tumour")),
    )
    for question, classes, recipes, parts in questions:
        measure = measure_slides if question == "clustered" else measure_patches
        for recipe in recipes:
            for seed in range(seeds):
                model = train(recipe, parts, classes, seed, EPOCHS.get(question, 30))
                told = measure(model, parts["test"])
                print(f"{question:<9}  {recipe[0]:<13}  seed {seed}  {told}", flush=True)
        kept = wsizoo.save(model, folder / f"model-{question}", overwrite=True)
        (result,) = wsizoo.predict(
            shown.slide, kept, folder / f"prediction-{question}", overwrite=True
        )
        if result.reason:
            sys.exit(f"{shown.name}: {result.reason}")
        print(f"{question:<9}  {shown.name}: {result.files['heatmap']}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        int(given[0]) if given else 16,
        int(given[1]) if len(given) > 1 else 1,
        Path(given[2] if len(given) > 2 else "example-span"),
    )
