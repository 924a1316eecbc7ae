"""Load a trained model and predict a slide or a feature file.

    python examples/load_and_predict.py [SLIDE_OR_FEATURES.h5]

Without an argument a small synthetic slide is drawn. `abmil-demo` is a toy trained on such slides:
it says nothing about real tissue.
"""

import sys
from pathlib import Path

import torch

import wsizoo

OUT = Path("example-prediction")


def draw_slide(path: Path) -> Path:
    """A synthetic slide with tumour, 2688 x 2688 px at 0.5 um/px; of no patient."""
    from wsizoo.demo.cohort import MPP, draw
    from wsizoo.slides.tiff import write_pyramid

    path.parent.mkdir(parents=True, exist_ok=True)
    return write_pyramid(path, draw(1).image[1344:4032, 1344:4032], MPP)


def main(source: Path) -> None:
    """Predict one slide or feature file, in one call and by hand."""
    model = wsizoo.load("abmil-demo")

    # Everything in one call: patches, features, prediction, heatmap, GeoJSON for QuPath.
    (result,) = wsizoo.predict(source, model, OUT)
    if result.reason:
        sys.exit(f"{source}: {result.reason}")
    for name, value in result.row.items():
        print(f"{name:<12} {value}")
    for kind, file in result.files.items():
        print(f"{kind:<12} {file}")

    # The same by hand, from the feature file: one slide is one Bag.
    bag = wsizoo.read_bag(result.files["features"])
    with torch.inference_mode():
        output = model(bag)
    best = int(output.scores.argmax())
    print(f"patch {best} of {len(bag)} mattered most; its top-left is {bag.coords[best].tolist()}")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:2]]
    main(given[0] if given else draw_slide(OUT / "synthetic.svs"))
