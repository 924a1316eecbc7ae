"""Reading patches of a pyramid, against a plain loop of OpenSlide; finding its tissue."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image

from benchmarks._measure import interleaved, report_speed
from wsizoo.demo.cohort import draw
from wsizoo.slides.patches import PatchGrid, read_batches
from wsizoo.slides.reader import open_slide
from wsizoo.slides.tiff import write_pyramid
from wsizoo.slides.tissue import find_tissue, segment

EDGE, MPP, PATCH = 20_000, 0.5, 224
PATCHES = 600
OVERVIEW = (2_500, 3_125)  # rows, columns


def run(scratch: Path) -> None:
    path = write_repeated(scratch / "pyramid.svs", draw(1).image, EDGE)
    size = path.stat().st_size / 2**20
    print(
        f"  {EDGE} x {EDGE} px, JPEG tiles of 256 px, {size:.0f} MiB; {PATCHES} patches of {PATCH}"
    )
    read(path, "at 0.5 um/px, as they are in the file", MPP)
    read(path, "at 0.5 um/px of a scan at 0.25", MPP / 2)
    tissue(path)


def write_repeated(path: Path, block: NDArray[np.uint8], edge: int) -> Path:
    """A pyramid of edge x edge px which shows a block again and again."""
    height, width = block.shape[:2]

    def region(x: int, y: int, across: int, down: int) -> NDArray[np.uint8]:
        rows, columns = (np.arange(y, y + down) % height), (np.arange(x, x + across) % width)
        return block[rows[:, None], columns]

    return write_pyramid(path, region, MPP, size=(edge, edge))


def read(path: Path, what: str, mpp: float, rounds: int = 5, patches: int = PATCHES) -> None:
    """Read the first patches at 0.5 um/px, the slide's own scale being taken as `mpp`."""
    alone, two, plain = interleaved(
        lambda: ours(path, mpp, patches, threads=1),
        lambda: ours(path, mpp, patches, threads=2),
        lambda: plain_loop(path, mpp, patches),
        rounds=rounds,
    )
    report_speed(f"patches {what}, 1 thread", alone, plain, "a loop of read_region", 1.0)
    report_speed(f"patches {what}, 2 threads", two, alone, "1 thread", 1.7)


def ours(path: Path, mpp: float, patches: int, threads: int) -> int:
    """Sum of all pixels, so that both are seen to read the same."""
    with open_slide(path, mpp) as slide:
        grid = PatchGrid.of(slide, MPP, PATCH)
        batches = read_batches(slide, grid, grid.all_cells()[:patches], 64, threads)
        return sum(int(batch.pixels[:, ::16, ::16].sum()) for batch in batches)


def plain_loop(path: Path, mpp: float, patches: int) -> int:
    edge = round(PATCH * MPP / mpp)
    total = 0
    with OpenSlide(path) as slide:
        columns = slide.dimensions[0] // edge
        for index in range(patches):
            corner = (index % columns * edge, index // columns * edge)
            patch = slide.read_region(corner, 0, (edge, edge)).convert("RGB")
            if edge != PATCH:
                patch = patch.resize((PATCH, PATCH), Image.Resampling.BILINEAR)
            total += int(np.asarray(patch)[::16, ::16].sum())
    return total


def tissue(path: Path, overview: tuple[int, int] = OVERVIEW) -> None:
    with open_slide(path) as slide:
        rows, columns = overview
        image = np.ascontiguousarray(slide.image(EDGE / max(overview))[0][:rows, :columns])
        found, cut = interleaved(lambda: find_tissue(slide), lambda: segment(image), rounds=5)
    megapixels = image.shape[0] * image.shape[1] / 1e6
    first, second = (float(np.median(seconds)) for seconds in (found, cut))
    print(
        f"  tissue of that slide: {first * 1e3:.0f} ms, goal below 1000; segmentation of an image "
        f"of {columns} x {rows} px: {second * 1e3:.0f} ms, {second * 1e3 / megapixels:.0f} ms/Mpx"
    )
