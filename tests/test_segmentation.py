"""wsizoo.segmentation: the tissue of many slides, as files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsizoo.errors import DataError
from wsizoo.segmentation import Segmented, segment_slides
from wsizoo.slides.annotations import tissue_from_geojson
from wsizoo.slides.reader import Pixels, open_slide
from wsizoo.slides.tiff import write_pyramid
from wsizoo.slides.tissue import find_tissue


def image(colour: tuple[int, int, int] = (185, 105, 160), glass: int = 243) -> Pixels:
    noise = np.random.default_rng(0).integers(-20, 20, (960, 1280, 1))
    pixels = np.full((1280, 1920, 3), glass, np.uint8)
    pixels[160:1120, 320:1600] = (np.array(colour) + noise).clip(0, 255)
    return pixels


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_pyramid(folder / "A1.svs", image(), 0.5, (1, 4))
    write_pyramid(folder / "B2.svs", image((30, 25, 40), glass=10), 0.5, (1, 4))
    write_pyramid(folder / "C3.svs", image((60, 140, 90)), 0.5, (1, 4))
    return folder


def test_each_slide_becomes_outlines_and_a_picture(slides: Path, tmp_path: Path) -> None:
    (found,) = segment_slides(slides / "A1.svs", tmp_path)
    assert (found.slide_id, found.state, found.reason) == ("A1", "done", "")
    assert found.share == pytest.approx(0.5, abs=0.03)
    assert found.area == pytest.approx(0.5 * 1920 * 1280 * 0.25e-6, abs=0.02)  # mm2
    with Image.open(found.picture) as picture:
        assert picture.size == (120, 80)
    with open_slide(slides / "A1.svs") as slide:
        mask = find_tissue(slide).mask
        again = tissue_from_geojson(found.file, slide.size, slide.mpp, mask.shape)
    assert np.array_equal(again.mask, mask)
    assert json.loads(found.file.read_text())["wsizoo"]["slide"] == "A1"


def test_a_slide_that_fails_is_reported_and_the_others_go_on(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "D4.svs").write_text("no slide")
    told: list[Segmented] = []
    results = segment_slides([tmp_path / "bad", slides], tmp_path, after_slide=told.append)
    assert told == results
    assert [r.state for r in results] == ["failed", "done", "failed", "done"]
    assert "no format OpenSlide reads" in results[0].reason
    assert "B2.svs is dark, so no brightfield slide" in results[2].reason
    assert results[2].share is None
    assert sorted(f.name for f in tmp_path.glob("*.*")) == [
        "A1.geojson", "A1.png", "C3.geojson", "C3.png",
    ]  # fmt: skip


def test_files_that_are_there_are_kept_unless_overwritten(slides: Path, tmp_path: Path) -> None:
    segment_slides(slides / "A1.svs", tmp_path)
    (tmp_path / "A1.geojson").write_text("edited")
    (kept,) = segment_slides(slides / "A1.svs", tmp_path)
    assert (kept.state, kept.share) == ("present", None)
    assert (tmp_path / "A1.geojson").read_text() == "edited"
    (again,) = segment_slides(slides / "A1.svs", tmp_path, overwrite=True)
    assert again.state == "done"
    assert (tmp_path / "A1.geojson").read_text() != "edited"


def test_what_looks_like_pen_is_kept_on_request(slides: Path, tmp_path: Path) -> None:
    (without,) = segment_slides(slides / "C3.svs", tmp_path / "a")
    (with_it,) = segment_slides(slides / "C3.svs", tmp_path / "b", remove_pen=False)
    assert without.share == 0
    assert with_it.share == pytest.approx(0.5, abs=0.03)


def test_a_stated_scale_is_used(slides: Path, tmp_path: Path) -> None:
    (found,) = segment_slides(slides / "A1.svs", tmp_path, mpp=1.0)
    assert found.area == pytest.approx(0.5 * 1920 * 1280 * 1e-6, abs=0.08)


def test_what_concerns_all_slides_is_an_error_at_once(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No file or folder at"):
        segment_slides(tmp_path / "none", tmp_path / "out")
    (tmp_path / "A1.tif").touch()
    with pytest.raises(DataError, match=r"have one name \(A1\)"):
        segment_slides([slides / "A1.svs", tmp_path / "A1.tif"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
