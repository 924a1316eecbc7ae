"""wsizoo.slides.extract: one slide to one feature file, or a reason why not."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from wsizoo.encoders.batches import BatchEncoder
from wsizoo.errors import DataError, ScaleError, SlideError
from wsizoo.interfaces import Encoder
from wsizoo.slides.extract import Progress, Request, SlideEncoder
from wsizoo.slides.facts import READ
from wsizoo.slides.manifest import SlideEntry
from wsizoo.slides.patches import PatchGrid
from wsizoo.slides.reader import open_slide
from wsizoo.slides.store import read_asked, read_bag, read_header, read_thumbnail, write_bag
from wsizoo.slides.tiff import write_pyramid


class MeanColour(Encoder):
    """Mean of red, green and blue; keeps the sizes of the batches it saw."""

    name, dim, mpp, patch_size, preprocessing = "mean-colour", 3, 0.5, 64, "mean"

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, patches: Tensor) -> Tensor:
        self.batches.append(len(patches))
        return patches.float().mean((2, 3))


def draw_slide(path: Path, width: int = 1000, height: int = 700, mpp: float = 0.5) -> Path:
    """Light background, a box of tissue that is redder to the right."""
    image = np.full((height, width, 3), 243, np.uint8)
    x = np.linspace(0, 60, width - 200).astype(np.uint8)
    image[100:-100, 100:-100] = np.stack([150 + x, 90 + x // 2, 150 + 0 * x], -1)
    return write_pyramid(path, image, mpp, (1, 4))


def extract_slide(
    path: Path,
    encoder: Encoder,
    out: Path,
    request: Request,
    progress: Progress | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> tuple[int, bool]:
    """Number of patches, and whether they were there."""
    maker = SlideEncoder(BatchEncoder(encoder, device), request, progress)
    header, present = maker.extract(SlideEntry(path), out, overwrite)
    return header.n, present


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_slide(tmp_path_factory.mktemp("extract") / "S1.svs")


def test_a_feature_file_holds_features_place_scale_and_origin(slide: Path, tmp_path: Path) -> None:
    encoder, out = MeanColour(), tmp_path / "S1.h5"
    n, present = extract_slide(slide, encoder, out, Request(overlap=0.25))
    bag, header = read_bag(out), read_header(out)
    assert (len(bag), present) == (n, False)
    assert bag.features.dtype == torch.float32
    assert (bag.spacing, bag.footprint, bag.mpp, bag.slide_id) == (48.0, 64.0, 0.5, "S1")
    assert bag.encoder == encoder.fingerprint()
    assert (header.facts.width, header.facts.height) == (1000, 700)
    assert (header.facts.mpp_source, header.facts.overlap) == ("openslide.mpp-x", 0.25)
    stored = read_thumbnail(out)
    assert stored is not None
    assert stored[0].shape == (700, 1000, 3)
    bag.require_unique_cells()


def test_features_are_those_of_the_patch_at_their_coords(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "S1.h5"
    extract_slide(slide, MeanColour(), out, Request(batch_size=7))
    bag = read_bag(out)
    with open_slide(slide) as opened:
        whole, _, _ = opened.read(0, 0, *opened.size, 0)
    assert bag.coords is not None
    for feature, (x, y) in zip(bag.features, bag.coords.tolist(), strict=True):
        expected = whole[y : y + 64, x : x + 64].reshape(-1, 3).mean(0)
        assert np.allclose(feature.numpy(), expected, atol=0.01)


def test_batches_cross_the_runs_of_the_reader_and_only_the_last_is_small(
    slide: Path, tmp_path: Path
) -> None:
    encoder, seen = MeanColour(), []
    request = Request(batch_size=25)
    n, _ = extract_slide(
        slide, encoder, tmp_path / "a.h5", request, lambda *told: seen.append(told)
    )
    whole, rest = divmod(n, 25)
    assert encoder.batches == [25] * whole + ([rest] if rest else [])
    assert seen == [("S1", min(25 * (i + 1), n), n) for i in range(len(encoder.batches))]


def test_the_size_of_batches_does_not_change_features(slide: Path, tmp_path: Path) -> None:
    bags = []
    for size in (1, 10, 1000):
        out = tmp_path / f"{size}.h5"
        extract_slide(slide, MeanColour(), out, Request(batch_size=size))
        bags.append(read_bag(out))
    assert torch.equal(bags[0].features, bags[1].features)
    assert torch.equal(bags[0].features, bags[2].features)


def test_request_overrides_scale_size_and_the_slides_scale(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    extract_slide(slide, MeanColour(), out, Request(mpp=1.0, patch_size=32, slide_mpp=0.25))
    bag = read_bag(out)
    assert (bag.mpp, bag.footprint) == (0.25, 128.0)
    assert bag.encoder is not None
    assert (bag.encoder.mpp, bag.encoder.patch_size) == (1.0, 32)
    assert read_header(out).facts.mpp_source == "user"


def test_what_is_there_and_the_same_is_verified_and_kept(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "S1.h5"
    n, _ = extract_slide(slide, MeanColour(), out, Request())
    before = out.stat().st_mtime_ns
    encoder = MeanColour()
    assert extract_slide(slide, encoder, out, Request(batch_size=3)) == (n, True)
    assert extract_slide(slide, encoder, out, Request(slide_mpp=0.5)) == (n, True)
    assert out.stat().st_mtime_ns == before
    assert encoder.batches == []


class OtherColour(MeanColour):
    name = "other-colour"


@pytest.mark.parametrize(
    ("encoder", "request_", "match"),
    [
        (OtherColour(), Request(), "made with encoder mean-colour, now asked for other-colour"),
        (MeanColour(), Request(mpp=1.0), "made with mpp 0.5, now asked for 1.0"),
        (MeanColour(), Request(patch_size=32), "made with patch_size 64, now asked for 32"),
        (MeanColour(), Request(overlap=0.5), "made with overlap 0.0, now asked for 0.5"),
        (MeanColour(), Request(min_tissue=0.2), "made with min_tissue None, now asked for 0.2"),
        (MeanColour(), Request(slide_mpp=0.25), "made with slide's mpp 0.5, now asked for 0.25"),
    ],
)
def test_what_is_there_but_made_otherwise_is_named_and_replaced_on_demand(
    slide: Path, tmp_path: Path, encoder: Encoder, request_: Request, match: str
) -> None:
    out = tmp_path / "S1.h5"
    extract_slide(slide, MeanColour(), out, Request())
    before = out.read_bytes()
    with pytest.raises(DataError, match=match + r"\. Choose another folder with -o.*--overwrite"):
        extract_slide(slide, encoder, out, request_)
    assert out.read_bytes() == before
    assert extract_slide(slide, encoder, out, request_, overwrite=True)[1] is False
    assert extract_slide(slide, encoder, out, request_)[1] is True


def test_another_slide_of_the_same_name_is_not_taken_for_this_one(
    slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "S1.h5"
    extract_slide(slide, MeanColour(), out, Request())
    larger = draw_slide(tmp_path / "S1.svs", width=1200)
    with pytest.raises(DataError, match=r"is of another slide named S1 \(width 1000"):
        extract_slide(larger, MeanColour(), out, Request())
    paler = draw_slide(tmp_path / "S1.svs", mpp=0.49)
    with pytest.raises(DataError, match=r"is of another slide named S1 \(quickhash"):
        extract_slide(paler, MeanColour(), out, Request())


def test_a_file_that_the_user_wrote_is_not_taken_for_an_extracted_one(
    slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "S1.h5"
    extract_slide(slide, MeanColour(), out, Request())
    write_bag(read_bag(out), out)
    with pytest.raises(DataError, match="is of another slide"):
        extract_slide(slide, MeanColour(), out, Request())


def test_a_damaged_file_is_an_error_that_says_what_to_do(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "S1.h5"
    n, _ = extract_slide(slide, MeanColour(), out, Request())
    whole = out.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(read_bag(out).features.numpy()[3].tobytes())] ^= 1
    for content in (whole[: len(whole) // 2], bytes(flipped), b""):
        out.write_bytes(content)
        with pytest.raises(DataError, match=r"Delete it and extract the slide again, or.*--overwr"):
            extract_slide(slide, MeanColour(), out, Request())
        assert extract_slide(slide, MeanColour(), out, Request(), overwrite=True) == (n, False)
        assert len(read_bag(out)) == n


class Wrong(MeanColour):
    def __init__(self, answer: Tensor | None) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, patches: Tensor) -> Tensor:
        features = super().forward(patches)
        if self.answer is None:
            features[1, 2] = float("nan")
            return features
        return self.answer


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (torch.zeros(1, 3), r"gave \(1, 3\) torch.float32, expected \(64, 3\) float"),
        (torch.zeros(64, 4), r"gave \(64, 4\) torch.float32, expected \(64, 3\) float"),
        (torch.zeros(64, 3, dtype=torch.int64), r"gave \(64, 3\) torch.int64, expected"),
        (None, "'mean-colour' gave NaN or infinite features of patch 1"),
    ],
)
def test_an_encoder_that_gives_no_features_is_named(
    slide: Path, tmp_path: Path, answer: Tensor | None, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        extract_slide(slide, Wrong(answer), tmp_path / "S1.h5", Request())
    assert list(tmp_path.iterdir()) == []


def test_impossible_requests_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="batch_size is 0, expected"):
        Request(batch_size=0)
    with pytest.raises(ScaleError, match=r"--mpp 264 is outside 0\.05 to 20"):
        Request(slide_mpp=264)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"mpp": 0.0}, "mpp of patches is 0.0, expected um/px above 0"),
        ({"mpp": float("nan")}, "mpp of patches is nan"),
        ({"patch_size": 0}, "patch_size is 0, expected px, 1 or more"),
        ({"overlap": 1.0}, "overlap is 1.0, expected a share of an edge, 0 to below 1"),
        ({"min_tissue": 1.5}, "min_tissue is 1.5, expected a share of a patch"),
    ],
)
def test_a_request_out_of_range_is_refused(asked: dict[str, float], match: str) -> None:
    with pytest.raises(DataError, match=match):
        Request(**asked)  # type: ignore[arg-type]


class RawPixels(Encoder):
    """The patches themselves."""

    name, dim, mpp, patch_size = "pixels", None, 0.5, 64

    def forward(self, patches: Tensor) -> Tensor:
        return patches


def test_pixels_are_written_a_chunk_a_patch_and_come_back_exactly(
    slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "S1.h5"
    n, _ = extract_slide(slide, RawPixels(), out, Request(batch_size=7))
    bag = read_bag(out)
    assert (bag.features.dtype, tuple(bag.features.shape)) == (torch.uint8, (n, 3, 64, 64))
    assert bag.coords is not None
    with open_slide(slide) as opened:
        whole, _, _ = opened.read(0, 0, *opened.size, 0)
    x, y = bag.coords[-1].tolist()
    assert np.array_equal(bag.features[-1].permute(1, 2, 0), whole[y : y + 64, x : x + 64])
    with h5py.File(out, "r") as file:
        assert file["features"].chunks == (1, 64, 64, 3)
        assert file["features"].compression == "gzip"
    assert extract_slide(slide, RawPixels(), out, Request()) == (n, True)


def test_no_more_than_a_batch_is_in_memory(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsizoo.slides._rows import Rows

    written: list[int] = []
    append = Rows.append

    def watched(self: Rows, features: Tensor) -> None:
        written.append(len(features))
        append(self, features)

    monkeypatch.setattr(Rows, "append", watched)
    encoder = MeanColour()
    n, _ = extract_slide(slide, encoder, tmp_path / "a.h5", Request(batch_size=10))
    assert (written, sum(written)) == (encoder.batches, n)


class NoPixels(RawPixels):
    def forward(self, patches: Tensor) -> Tensor:
        return patches.float()


def test_an_encoder_of_pixels_that_gives_none_is_named(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gave \(64, 3, 64, 64\) torch.float32, expected .*uint8"):
        extract_slide(slide, NoPixels(), tmp_path / "a.h5", Request())


def test_batches_go_to_the_device_that_was_named(slide: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    class Watched(MeanColour):
        def forward(self, patches: Tensor) -> Tensor:
            seen.append(patches.device.type)
            return torch.zeros(len(patches), 3)

    extract_slide(slide, Watched(), tmp_path / "a.h5", Request(), device="meta")
    assert set(seen) == {"meta"}


def test_a_blank_slide_has_no_features(tmp_path: Path) -> None:
    blank = write_pyramid(tmp_path / "b.svs", np.full((600, 600, 3), 243, np.uint8), 0.5, (1,))
    with pytest.raises(SlideError, match="none was found at all"):
        extract_slide(blank, MeanColour(), tmp_path / "b.h5", Request())
    n, _ = extract_slide(blank, MeanColour(), tmp_path / "b.h5", Request(min_tissue=0))
    with open_slide(blank) as opened:
        grid = PatchGrid.of(opened, 0.5, 64)
    assert n == grid.columns * grid.rows


def damaged(slide: Path, path: Path, share: float = 0.5) -> Path:
    """A copy in which one JPEG tile of level 0 is cut short in its middle."""
    data = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[5], page.databytecounts[5]
    middle = offset + int(count * share)
    data[middle : middle + 60] = b"\xff\xd9" * 30
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("levels", [(1,), (1, 4)])
def test_patches_that_cannot_be_decoded_are_left_out_and_told(
    tmp_path: Path, levels: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    image = np.full((1000, 1400, 3), 243, np.uint8)
    image[50:-50, 50:-50] = np.array([170, 100, 150]) + rng.integers(-25, 25, (900, 1300, 1))
    whole = write_pyramid(tmp_path / "S1.svs", image, 0.5, levels)
    torn = damaged(whole, tmp_path / "torn.svs")
    request = Request(max_unreadable=0.2)
    extract_slide(whole, MeanColour(), tmp_path / "whole.h5", request)
    n, _ = extract_slide(torn, MeanColour(), tmp_path / "torn.h5", request)
    good, bad = read_bag(tmp_path / "whole.h5"), read_bag(tmp_path / "torn.h5")
    asked, header = read_asked(tmp_path / "torn.h5"), read_header(tmp_path / "torn.h5")
    assert asked is not None
    assert good.coords is not None and bad.coords is not None
    rows = {tuple(xy): i for i, xy in enumerate(good.coords.tolist())}
    kept = asked.status == READ
    assert rows.keys() <= set(map(tuple, asked.coords.tolist()))  # not one patch is forgotten
    assert header.unreadable == (~kept).sum() > 0
    x, y = asked.coords[~kept].T  # around the torn tile only, the sixth of the first row
    assert x.min() > 5 * 256 - 64 and y.max() < 256
    assert np.array_equal(asked.coords[kept], bad.coords)
    pairs = [(i, rows.get(tuple(xy))) for i, xy in enumerate(bad.coords.tolist())]
    mine, same = zip(*((i, j) for i, j in pairs if j is not None), strict=True)
    assert n >= len(same) > 200
    assert torch.equal(bad.features[list(mine)], good.features[list(same)])
    with pytest.raises(
        SlideError, match=r"of the \d+ patches tried cannot be decoded.*The file is damaged"
    ):
        extract_slide(torn, MeanColour(), tmp_path / "x.h5", Request(max_unreadable=0.001))
    assert not list(tmp_path.glob(".*"))


def test_an_encoder_may_want_less_tissue_a_patch_unless_asked_for_another_share(
    tmp_path: Path,
) -> None:
    path, encoder = draw_slide(tmp_path / "slide.tiff"), MeanColour()
    usual, _ = extract_slide(path, encoder, tmp_path / "usual.h5", Request())
    encoder.min_tissue = 0.1
    own, _ = extract_slide(path, encoder, tmp_path / "own.h5", Request())
    asked, _ = extract_slide(path, encoder, tmp_path / "asked.h5", Request(min_tissue=0.5))
    assert asked == usual < own
    assert read_header(tmp_path / "own.h5").facts.min_tissue == 0.1
    assert read_header(tmp_path / "usual.h5").facts.min_tissue is None
