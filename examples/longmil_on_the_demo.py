"""LongMIL on the slides of the demo, and what it attends to once it is trained.

    python examples/longmil_on_the_demo.py [SLIDES [EPOCHS [FOLDER]]]

Needs wsizoo-plugin-longmil. Every synthetic slide holds twenty lymphoid foci, each in a patch of
its own: in two groups, or apart, which no patch shows by itself. A local layer can count the foci
around a patch. 40 slides and 40 epochs are enough to learn it; then open
FOLDER/diagnosis/attention.html.
"""

import sys
from pathlib import Path

import torch

import wsizoo
from wsizoo.augment import CoordinateAugmentation
from wsizoo.demo.cohort import CohortSlide, write_cohort
from wsizoo.diagnosis.attention import diagnose_attention
from wsizoo.train.loop import fit

# A radius of 10 patches, the paper's, is half a slide of the demo; several heads can differ.
OVERRIDES = ("aggregator.dim=64", "aggregator.heads=4", "aggregator.radius=3")
CLASSES = "head.classes=[scattered,clustered]"


def read_part(cohort: list[CohortSlide], folder: Path, part: str) -> list[wsizoo.Bag]:
    """The slides of a part, labelled 1 where clustered."""
    return [
        wsizoo.read_bag(folder / f"{slide.name}.h5").replace(target={"label": slide.clustered})
        for slide in cohort
        if slide.part == part
    ]


def main(slides: int, epochs: int, folder: Path) -> None:
    """Draw, extract, train, test; diagnose a held-out slide with random and trained weights."""
    torch.set_num_threads(1)  # networks this small are faster so
    cohort, features = write_cohort(folder, slides), folder / "features"
    for found in wsizoo.extract([s.slide for s in cohort], "handcrafted-he", features, workers=2):
        if found.reason:
            sys.exit(f"{found.slide_id}: {found.reason}")
    model = wsizoo.build("longmil-uni", "encoder=handcrafted-he", *OVERRIDES, CLASSES, seed=0)
    test = read_part(cohort, features, "test")
    shown = features / f"{next(s.name for s in cohort if s.part == 'test' and s.clustered)}.h5"
    (before,) = diagnose_attention(model, shown)
    train = read_part(cohort, features, "train")
    fit(model, train, epochs=epochs, lr=3e-4, augment=CoordinateAugmentation())
    with torch.inference_mode():
        right = [int(model(bag).logits.argmax()) == bag.target["label"] for bag in test]
    print(f"{sum(right)} of {len(right)} held-out slides are told right")
    (after,) = diagnose_attention(model, shown, folder / "diagnosis")
    for was, now in zip(before.heads, after.heads, strict=True):
        print(
            f"layer {now.layer} head {now.head}  {now.tokens} tokens, at least rank "
            f"{now.plane.rank}; effective rank {was.effective_rank:.1f} -> "
            f"{now.effective_rank:.1f}, mean distance {was.distance:.2f} -> {now.distance:.2f}"
        )
    print(f"Open {folder / 'diagnosis' / 'attention.html'}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        int(given[0]) if given else 16,
        int(given[1]) if len(given) > 1 else 10,
        Path(given[2] if len(given) > 2 else "example-longmil"),
    )
