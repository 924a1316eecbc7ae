"""What a prediction says of the patches of one slide, as files: scores, a heatmap, GeoJSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsizoo.bag import Bag
from wsizoo.files import replacing, write_csv
from wsizoo.slides.reader import Pixels
from wsizoo.slides.store import read_header, read_thumbnail
from wsizoo.viz.colour import normalise
from wsizoo.viz.geojson import patches_geojson, write_geojson
from wsizoo.viz.heatmap import overlay, with_legend

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


def write_scores(path: Path, bag: Bag, scores: Floats, kept: Index | None) -> Path:
    """One row a patch: x, y (level-0 px; empty without coords) and its score.

    Args:
        scores: (N,), larger mattered more. kept: (K,) patches that a selector kept; adds a column.
    """
    columns = ["x", "y", "score"]
    xy = bag.coords.tolist() if bag.coords is not None else [["", ""]] * len(bag)
    rows: list[dict[str, Any]] = [
        {"x": x, "y": y, "score": f"{score:.6g}"} for (x, y), score in zip(xy, scores, strict=True)
    ]
    if kept is not None:
        columns.append("kept")
        chosen = set(kept.tolist())
        for i, row in enumerate(rows):
            row["kept"] = int(i in chosen)
    write_csv(path, rows, columns)
    return path


def write_pictures(
    out: Path, name: str, features: Path, bag: Bag, scores: Floats, kept: Index | None
) -> dict[str, Path]:
    """`out/heatmaps/<name>.png` over the thumbnail, and `out/geojson/<name>.geojson`.

    Args:
        features: the feature file, for its thumbnail. bag: with coords and footprint.

    Returns:
        The two files by kind.
    """
    assert bag.coords is not None and bag.footprint is not None
    coords = bag.coords.cpu().numpy()
    image, downsample = canvas(features, coords, bag.footprint)
    ranks = normalise(scores)
    picture = overlay(image, downsample, coords, bag.footprint, ranks, outline=kept)
    heatmap = out / "heatmaps" / f"{name}.png"
    with replacing(heatmap) as temporary:
        legend = with_legend(picture, "least", "most", "importance to the model (rank)")
        Image.fromarray(legend).save(temporary, "PNG")
    geojson = out / "geojson" / f"{name}.geojson"
    write_geojson(geojson, patches_geojson(coords, bag.footprint, scores, kept=kept))
    return {"heatmap": heatmap, "geojson": geojson}


def canvas(
    features: Path, coords: Index, footprint: float, edge: int = 1024
) -> tuple[Pixels, tuple[float, float]]:
    """The slide's thumbnail and its downsample in x and y; white where the file has none."""
    stored, facts = read_thumbnail(features), read_header(features).facts
    if stored is not None and facts.width and facts.height:
        image = stored[0]
        return image, (facts.width / image.shape[1], facts.height / image.shape[0])
    far = coords.max(0) + footprint
    downsample = max(1.0, float(far.max()) / edge)
    width, height = np.ceil(far / downsample).astype(int)
    return np.full((height, width, 3), 255, np.uint8), (downsample, downsample)
