"""wsizoo.formats.convert: what is written is what other tools read, and comes back as it was."""

import csv
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsizoo.bag import Bag
from wsizoo.cli import cli
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.convert import WRITABLE, Converted, convert, list_sources
from wsizoo.formats.inspection import inspect
from wsizoo.formats.read import ReadAs, read_features, read_with_report
from wsizoo.slides.facts import Asked, SlideFacts
from wsizoo.slides.store import (
    check_content,
    read_asked,
    read_bag,
    read_header,
    read_made,
    read_thumbnail,
    write_bag,
    writing,
)

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
EAGLE = DATA / "features" / "stamp_eagle"
MADE = Fingerprint("uni", mpp=0.5, patch_size=224)
MPP = 0.2277
STEP = 224 * 0.5 / MPP  # 491.87 level-0 px


def make_bag(n: int = 30, dim: int = 5, step: float = STEP, mpp: float | None = MPP) -> Bag:
    cells = torch.stack([torch.arange(n) % 7 + 2, torch.arange(n) // 7], 1)
    coords = (cells.double() * step).round().long()
    features = torch.randn(n, dim, generator=torch.Generator().manual_seed(n))
    return Bag(features, coords, spacing=step, mpp=mpp, encoder=MADE, slide_id="S1")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    facts = SlideFacts("S1", 20_000, 10_000, mpp_source="file")
    return write_bag(make_bag(), tmp_path / "own" / "S1.h5", facts=facts)


def one(results: list[Converted]) -> Converted:
    (result,) = results
    assert result.reason == ""
    return result


def again(files: tuple[Path, ...], to: str) -> Path:
    """The file of a slide that is read back: of several, the last that was written."""
    return next(file for file in reversed(files) if "patches" not in file.parts)


HOW: dict[str, dict[str, Any]] = {
    "clam": {"encoder": "uni", "slide_mpp": MPP},
    "span": {"encoder": "uni"},
    "stamp": {"slide_mpp": MPP},
    "torchmil": {"encoder": "uni"},
    "mil-baseline": {"encoder": "uni", "format": "pt"},
}


@pytest.mark.parametrize("to", WRITABLE)
def test_what_is_written_is_read_back(to: str, own: Path, tmp_path: Path) -> None:
    result = one(convert(own, tmp_path / "out", to))
    assert (result.slide_id, result.n, result.format) == ("S1", 30, "wsizoo")
    back = read_features(again(result.files, to), **HOW.get(to, {}))
    bag = read_bag(own)
    assert torch.equal(back.features, bag.features)
    if to == "mil-baseline":
        assert back.coords is None
        return
    assert torch.equal(back.grid() - back.grid().min(0).values, bag.grid() - bag.grid().min(0)[0])
    if to in ("wsizoo", "trident", "clam", "stamp"):
        assert back.coords is not None and bag.coords is not None
        assert torch.equal(back.coords, bag.coords)
        assert back.mpp == bag.mpp
    if to in ("wsizoo", "trident"):
        assert back.encoder == MADE
        assert back.footprint == bag.footprint
    assert not [file for file in (tmp_path / "out").rglob("*") if ".tmp-" in file.name]


def h5_content(path: Path) -> dict[str, Any]:
    """Arrays and attributes, but those that name a place."""
    with h5py.File(path, "r") as file:
        content: dict[str, Any] = {name: file[name][()].tolist() for name in file}
        for name in ("/", *file):
            for key, value in file[name].attrs.items():
                if key not in ("savetodir", "save_path", "stamp_version"):
                    content[f"{name}.{key}"] = np.asarray(value).tolist()
        return content


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    to=st.sampled_from(["trident", "clam", "span", "stamp"]),
    n=st.integers(8, 60), dim=st.integers(1, 9), half=st.booleans(), step=st.integers(100, 900),
)  # fmt: skip
def test_there_and_back_again_is_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, to: str, n: int, dim: int, half: bool, step: int
) -> None:
    """A -> wsizoo -> A."""
    folder = tmp_path_factory.mktemp("trip")
    bag = make_bag(n, dim, float(step), 0.25)
    bag = bag.replace(
        features=bag.features.to(torch.float16 if half else torch.float32),
        encoder=Fingerprint("uni", mpp=0.25 * step / 224, patch_size=224),
    )
    facts = SlideFacts("S1", 90_000, 80_000)
    start = write_bag(bag, folder / "start" / "S1.h5", facts=facts)
    there = again(one(convert(start, folder / "a", to)).files, to)
    how = ReadAs(
        "uni" if to in ("clam", "span") else None, 0.25 if to in ("clam", "stamp") else None
    )
    if to == "clam":
        there = folder / "a" / "h5_files" / "S1.h5"
    middle = one(convert(there, folder / "b", "wsizoo", how=how))
    one(convert(middle.files[0], folder / "c", to))
    first = sorted(file for file in (folder / "a").rglob("*") if file.suffix == ".h5")
    assert first
    for file in first:
        assert h5_content(file) == h5_content(folder / "c" / file.relative_to(folder / "a"))


@pytest.mark.parametrize("to", ["slideflow", "torchmil"])
def test_folders_there_and_back_again(to: str, tmp_path: Path) -> None:
    start = write_bag(make_bag(30, 5, 491.0), tmp_path / "start" / "S1.h5")
    one(convert(start, tmp_path / "a", to))
    middle = one(convert(tmp_path / "a", tmp_path / "b", how=ReadAs("uni")))
    one(convert(middle.files[0], tmp_path / "c", to))
    files = [file for file in (tmp_path / "a").rglob("*") if file.suffix in (".npy", ".npz")]
    assert files
    for file in files:
        other = tmp_path / "c" / file.relative_to(tmp_path / "a")
        arrays = [np.load(each) for each in (file, other)]
        a, b = (x if isinstance(x, np.ndarray) else x["arr_0"] for x in arrays)
        assert np.array_equal(a, b)
    if to == "slideflow":
        configs = [json.loads((tmp_path / each / "bags_config.json").read_text()) for each in "ac"]
        assert configs[0] == configs[1]
        assert configs[0]["extractor"]["class"] == "uni"
        assert (configs[0]["tile_px"], configs[0]["tile_um"]) == (224, 112.0)


def test_trident_reads_what_we_write_for_it(own: Path, tmp_path: Path) -> None:
    """Its `read_coords`: attributes of `coords`, whole numbers; vectors (N, D) beside them."""
    one(convert(own, tmp_path, "trident"))
    with h5py.File(tmp_path / "S1.h5", "r") as file:
        told = dict(file["coords"].attrs)
        for name in ("patch_size", "level0_magnification", "target_magnification", "overlap"):
            assert isinstance(told[name], np.integer)
        assert told["patch_size_level0"] == 492
        assert (told["level0_magnification"], told["target_magnification"]) == (44, 20)
        assert (told["level0_width"], told["level0_height"]) == (20_000, 10_000)
        assert (told["name"], told["savetodir"]) == ("S1", str(tmp_path))
        assert file["coords"].dtype == np.int64
        assert file["coords"].maxshape == (None, 2)
        assert file["features"].attrs["encoder"] == "uni_v1"
        assert file["features"].chunks[0] > 1
        assert file["features"].shape == (30, 5)


def test_stamp_reads_what_we_write_for_it(own: Path, tmp_path: Path) -> None:
    """Its `get_coords`: `tile_size_um`, and coordinates in um."""
    one(convert(own, tmp_path, "stamp"))
    with h5py.File(tmp_path / "S1.h5", "r") as file:
        assert "tile_size" not in file.attrs
        assert file.attrs["tile_size_um"] == pytest.approx(112)
        assert (file.attrs["tile_size_px"], file.attrs["extractor"]) == (224, "mahmood-uni")
        assert file["coords"].dtype == np.float32
        tiles = file["coords"][()] / file.attrs["tile_size_um"]
        assert np.abs(tiles - make_bag().grid().numpy()).max() < 0.005
        assert tuple(map(int, str(file.attrs["stamp_version"]).split("."))) <= (2, 4, 0)


def test_torchmil_reads_what_we_write_for_it(own: Path, tmp_path: Path) -> None:
    """Its `WSIDataset`: coordinates divided by `patch_size`, begun at 0, truncated."""
    one(convert(own, tmp_path, "torchmil"))
    coords = np.load(tmp_path / "coords" / "S1.npy")
    places = coords / 492
    cells = (places - places.min(0)).astype(int)
    expected = make_bag().grid().numpy()
    assert np.array_equal(cells, expected - expected.min(0))
    assert np.load(tmp_path / "features" / "S1.npy").shape == (30, 5)
    assert not (tmp_path / "labels").exists()


def test_spans_loader_reads_what_we_write_for_it(own: Path, tmp_path: Path) -> None:
    """It divides by 224 and truncates; its key must not repeat."""
    one(convert(own, tmp_path, "span"))
    with h5py.File(tmp_path / "S1.h5", "r") as file:
        cords = file["cords"][()]
    assert (cords % 224 == 0).all()
    pos = (cords / 224 - (cords / 224).min(0)).astype(int)
    key = pos[:, 0] * (pos[:, 1].max() + 1) + pos[:, 1]
    assert len(np.unique(key)) == 30


def test_clam_finds_its_three_files(own: Path, tmp_path: Path) -> None:
    result = one(convert(own, tmp_path, "clam"))
    names = [file.relative_to(tmp_path).as_posix() for file in result.files]
    assert names == ["patches/S1.h5", "h5_files/S1.h5", "pt_files/S1.pt"]
    assert torch.load(tmp_path / "pt_files" / "S1.pt", weights_only=True).shape == (30, 5)
    with h5py.File(tmp_path / "patches" / "S1.h5", "r") as file:
        assert file["coords"].attrs["patch_size"] == 492
        assert file["coords"].attrs["downsample"].tolist() == [1.0, 1.0]


def test_mil_baseline_gets_a_table(own: Path, tmp_path: Path) -> None:
    write_bag(make_bag().replace(slide_id="S2"), own.parent / "S2.h5")
    convert(own.parent, tmp_path / "out", "mil-baseline")
    with open(tmp_path / "out" / "dataset.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["slide_path"]).name for row in rows] == ["S1.pt", "S2.pt"]
    assert torch.load(rows[0]["slide_path"], weights_only=True).shape == (30, 5)


def test_labels_go_along_between_formats_that_have_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["feats"], file["cords"] = np.zeros((4, 3), np.float32), np.eye(4, 2, dtype=int) * 224
        file["ratios"], file["label"] = np.arange(4.0), np.eye(3, dtype=np.float32)[[2]]
        del file["cords"]
        file["cords"] = np.array([[0, 0], [224, 0], [0, 224], [224, 224]])
    how = ReadAs("uni", slide_mpp=0.25, coords_mpp=0.5)
    one(convert(tmp_path / "S1.h5", tmp_path / "t", "torchmil", how=how))
    how = ReadAs("uni")
    assert np.load(tmp_path / "t" / "labels" / "S1.npy").tolist() == [2]
    assert np.load(tmp_path / "t" / "inst_labels" / "S1.npy").tolist() == [0, 1, 2, 3]
    one(convert(tmp_path / "S1.h5", tmp_path / "s", "span", how=how))
    assert h5_content(tmp_path / "s" / "S1.h5") == h5_content(tmp_path / "S1.h5")
    one(convert(tmp_path / "t", tmp_path / "m", "mil-baseline", how=how))
    assert (tmp_path / "m" / "dataset.csv").read_text().endswith("S1.pt,2\n")
    one(convert(tmp_path / "m" / "dataset.csv", tmp_path / "u", "torchmil", how=how))
    assert np.load(tmp_path / "u" / "labels" / "S1.npy").tolist() == [2]


def test_features_of_clam_are_regridded_and_it_is_said(tmp_path: Path) -> None:
    coords = make_bag(30, 5, 512.0).coords
    assert coords is not None
    moved = coords.clone()
    moved[25:] += 100
    moved[29] = moved[28] + 5
    (tmp_path / "h5_files").mkdir()
    with h5py.File(tmp_path / "h5_files" / "S1.h5", "w") as file:
        file["features"], file["coords"] = make_bag().features, moved
    (result,) = convert(tmp_path, tmp_path / "out", how=ReadAs("uni"))
    assert "share a cell" in result.reason
    assert not (tmp_path / "out").exists()
    how = ReadAs("uni", collisions="nearest")
    result = one(convert(tmp_path, tmp_path / "out", how=how))
    assert result.told.startswith("5 of 30 patches moved onto the grid")
    assert result.told.endswith("1 collided (nearest)")
    back = read_bag(tmp_path / "out" / "S1.h5")
    assert len(back.require_unique_cells()) == 30
    assert torch.equal(back.features, make_bag().features)


@pytest.mark.skipif(not EAGLE.is_dir(), reason="no real feature files: set WSIZOO_DATA")
def test_real_files_of_stamp_go_there_and_back(tmp_path: Path) -> None:
    how = ReadAs(slide_mpp=0.25, coords_mpp=2.0)
    files = sorted(EAGLE.glob("*.h5"))
    results = convert(files, tmp_path / "a", how=how)
    assert [result.n for result in results] == [2131, 1896]
    header = read_header(results[0].files[0])
    assert (header.mpp, header.spacing, header.facts.mpp_source) == (0.25, 1792.0, "user")
    one(convert(results[0].files[0], tmp_path / "b", "stamp"))
    with (
        h5py.File(tmp_path / "b" / results[0].files[0].name, "r") as file,
        h5py.File(files[0], "r") as real,
    ):
        assert np.array_equal(file["feats"][()], real["feats"][()])
        assert np.array_equal(file["coords"][()], real["coords"][()] * 2.0)
        assert file.attrs["tile_size_um"] == 448.0


def test_um_stay_um_through_wsizoos_file_until_mpp_is_given(tmp_path: Path) -> None:
    bag = make_bag(12, 3, 1024.0, 0.25)
    one(convert(write_bag(bag, tmp_path / "S1.h5"), tmp_path / "stamp", "stamp"))
    result = one(convert(tmp_path / "stamp", tmp_path / "um"))
    assert result.told == "coordinates are in um"
    file = result.files[0]
    assert read_header(file).facts.mpp_source == "coordinates are in um"
    reading = read_with_report(file)
    assert (reading.frame, reading.bag.spacing, reading.bag.mpp) == ("um", 256.0, 1.0)
    reading = read_with_report(file, ReadAs(slide_mpp=0.25))
    assert (reading.frame, reading.facts.mpp_source) == ("level-0 px", "user")
    assert reading.bag.coords is not None and bag.coords is not None
    assert torch.equal(reading.bag.coords, bag.coords)
    assert inspect(file).frame == "um"
    assert inspect(file, ReadAs(slide_mpp=0.25)).spacing == 1024.0


EARLY = {"extractor": "STAMP-extract-001_01-10-2023_xiyuewang-ctranspath-7c998680"}


def early_stamp(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / "S1.h5", "w") as file:
        file["feats"] = np.ones((12, 3), np.float32)
        file["coords"] = np.stack([np.arange(12) % 4, np.arange(12) // 4], 1) * 224
        file.attrs.update(EARLY)
    return folder / "S1.h5"


LEVEL0_ONLY = ["trident", "clam", "slideflow", "torchmil"]


@pytest.mark.parametrize("to", LEVEL0_ONLY)
def test_um_are_not_written_as_level0_px(to: str, tmp_path: Path) -> None:
    bag = make_bag(12, 3, 1024.0, 0.25)
    one(convert(write_bag(bag, tmp_path / "S1.h5"), tmp_path / "stamp", "stamp"))
    um = one(convert(tmp_path / "stamp", tmp_path / "um")).files[0]
    for source in (tmp_path / "stamp", um):
        (result,) = convert(source, tmp_path / "out", to)
        assert result.reason == (
            f"slide 'S1': its coordinates are in um, those of {to} files in level-0 px. State "
            "--mpp 0.25"
        )
        assert not (tmp_path / "out").exists()
    result = one(convert(um, tmp_path / "out", to, how=ReadAs(slide_mpp=0.25)))
    how = {**HOW.get(to, {}), **({"slide_mpp": 0.25} if to == "clam" else {})}
    back = read_features(again(result.files, to), **how)
    assert back.coords is not None and bag.coords is not None
    assert torch.equal(back.coords, bag.coords)


@pytest.mark.parametrize("to", [*LEVEL0_ONLY, "stamp"])
def test_px_of_a_tools_own_are_not_written_as_level0_px(to: str, tmp_path: Path) -> None:
    path = early_stamp(tmp_path / "early")
    (result,) = convert(path, tmp_path / "out", to)
    assert "its coordinates are in px of the tool's own, those of" in result.reason
    assert result.reason.endswith("State --mpp 0.25 and --coords-mpp 1.142857")
    (result,) = convert(path, tmp_path / "out", to, how=ReadAs(coords_mpp=2.0))
    assert result.reason.endswith("State --mpp 0.25")
    assert not (tmp_path / "out").exists()


def test_early_stamp_states_what_trident_needs_once_its_px_are_known(tmp_path: Path) -> None:
    how = ReadAs(slide_mpp=0.25, coords_mpp=2.0)
    one(convert(early_stamp(tmp_path / "early"), tmp_path / "out", "trident", how=how))
    with h5py.File(tmp_path / "out" / "S1.h5", "r") as file:
        told = dict(file["coords"].attrs)
    assert (told["patch_size"], told["patch_size_level0"]) == (224, 1792)
    assert (told["level0_magnification"], told["target_magnification"]) == (40, 5)
    made = read_features(tmp_path / "out" / "S1.h5").encoder
    assert made == Fingerprint("ctranspath", patch_size=224, mpp=2.0)


def test_um_go_to_stamp_as_they_are_unless_they_were_rounded(tmp_path: Path) -> None:
    bag = make_bag(12, 3, 1024.0, 0.25)
    one(convert(write_bag(bag, tmp_path / "S1.h5"), tmp_path / "a", "stamp"))
    um = one(convert(tmp_path / "a", tmp_path / "um"))
    one(convert(um.files[0], tmp_path / "b", "stamp"))
    assert h5_content(tmp_path / "a" / "S1.h5") == h5_content(tmp_path / "b" / "S1.h5")
    with h5py.File(tmp_path / "a" / "S1.h5", "r+") as file:
        file["coords"][...] = file["coords"][()] * 1.001
        file.attrs["tile_size_um"] = 256.256
    (result,) = convert(tmp_path / "a", tmp_path / "c", "stamp")
    assert "its coordinates are fractions of a um, and were rounded to whole ones. State the" in (
        result.reason
    )
    one(convert(tmp_path / "a", tmp_path / "c", "stamp", how=ReadAs(slide_mpp=0.25)))


def extracted(folder: Path, slide: str = "S1", mpp: float | None = MPP) -> Path:
    """A file with everything that extract writes; two of its patches could not be read."""
    bag = make_bag(mpp=mpp).replace(slide_id=slide)
    assert bag.coords is not None
    extra = bag.coords[-2:] + torch.tensor([0, round(3 * STEP)])
    status = np.r_[np.zeros(30, np.uint8), np.ones(2, np.uint8)]
    asked = Asked(np.concatenate([bag.coords.numpy(), extra.numpy()]), status)
    facts = SlideFacts(
        slide, 20_000, 10_000, "abc", "file", tissue=0.4, patient="P1", certificate={"error": 0.0}
    )
    thumbnail = (np.full((8, 9, 3), 200, np.uint8), 64.0)
    made, path = {"torch": "2"}, folder / f"{slide}.h5"
    with writing(path, bag, facts=facts, thumbnail=thumbnail, asked=asked, made=made) as write:
        write(bag.features)
    return path


def test_wsizoos_own_file_is_copied_where_nothing_changes(tmp_path: Path) -> None:
    path = extracted(tmp_path / "own")
    before = path.read_bytes()
    assert one(convert(path, tmp_path / "out")).told == ""
    assert (tmp_path / "out" / "S1.h5").read_bytes() == before
    one(convert(path, tmp_path / "own", overwrite=True))
    assert path.read_bytes() == before
    how = ReadAs("uni", slide_mpp=MPP, collisions="nearest")
    one(convert(path, tmp_path / "same", how=how))
    assert (tmp_path / "same" / "S1.h5").read_bytes() == before


@pytest.mark.parametrize("in_place", [False, True])
def test_what_changes_in_wsizoos_own_file_leaves_the_rest(tmp_path: Path, in_place: bool) -> None:
    path = extracted(tmp_path / "own", mpp=None)
    before = read_header(path)
    asked, thumbnail = read_asked(path), read_thumbnail(path)
    out = path.parent if in_place else tmp_path / "out"
    one(convert(path, out, how=ReadAs(slide_mpp=MPP), overwrite=in_place))
    header = check_content(out / "S1.h5")
    assert (header.mpp, header.facts.mpp_source) == (MPP, "user")
    assert header.facts == dataclasses.replace(before.facts, mpp_source="user")
    assert (header.n, header.unreadable, header.fingerprint) == (30, 2, MADE)
    back, image = read_asked(out / "S1.h5"), read_thumbnail(out / "S1.h5")
    assert back is not None and asked is not None
    assert np.array_equal(back.coords, asked.coords)
    assert np.array_equal(back.status, asked.status)
    assert image is not None and thumbnail is not None
    assert image[0].shape == thumbnail[0].shape and image[1] == 64.0
    assert read_made(out / "S1.h5") == {"torch": "2"}


def test_a_new_name_or_place_of_patches_is_kept_apart_from_what_they_were(tmp_path: Path) -> None:
    one(convert(extracted(tmp_path), tmp_path / "out" / "B.h5"))
    header = check_content(tmp_path / "out" / "B.h5")
    assert (header.facts.slide_id, header.unreadable) == ("B", 2)
    bag = make_bag(4, 3, 256.0)
    assert bag.coords is not None
    bag.coords[3] = bag.coords[2]
    asked = Asked(bag.coords.numpy(), np.zeros(4, np.uint8))
    with writing(tmp_path / "c" / "S1.h5", bag, asked=asked) as write:
        write(bag.features)
    how = ReadAs(collisions="first")
    result = one(convert(tmp_path / "c", tmp_path / "d", how=how))
    assert result.told == "1 collided (first), wsizoo keeps no list of unreadable patches"
    assert read_asked(tmp_path / "d" / "S1.h5") is None


def test_a_damaged_file_is_not_copied(tmp_path: Path) -> None:
    path = extracted(tmp_path)
    content = bytearray(path.read_bytes())
    with h5py.File(path, "r") as file:
        content[file["thumbnail"].id.get_offset() + 30] ^= 1
    path.write_bytes(content)
    (result,) = convert(path, tmp_path / "out")
    assert "is damaged: its content does not match its digest" in result.reason
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("to", WRITABLE)
def test_pixels_stay_with_wsizoo(to: str, tmp_path: Path) -> None:
    pixels = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).to(torch.uint8)
    bag = make_bag(4).replace(features=pixels, encoder=Fingerprint("pixels"))
    path = write_bag(bag, tmp_path / "S1.h5")
    (result,) = convert(path, tmp_path / "out", to)
    if to == "wsizoo":
        assert torch.equal(read_bag(tmp_path / "out" / "S1.h5").features, pixels)
    else:
        assert result.reason == (
            f"slide 'S1': its file has pixels (4, 3, 8, 8), {to} files have one vector a patch. "
            "Encode the slide: wsizoo extract SLIDE -e ENCODER"
        )


def test_whatever_a_slide_fails_of_is_its_reason(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of something")

    monkeypatch.setattr("wsizoo.formats.convert.read_with_report", broken)
    (result,) = convert(own, tmp_path / "out", "trident")
    assert result.reason == "ZeroDivisionError: of something"


FULL = Fingerprint("uni", "c0ffee", "ab" * 32, "resize 224", "cls", 0.5, 224)


@pytest.mark.parametrize(
    "made",
    [
        FULL,
        dataclasses.replace(FULL, encoder="ctranspath", declared=True),  # TRIDENT's is another
        Fingerprint("conch", pooling="contrastive projection", mpp=0.5, patch_size=224),
        Fingerprint("h0-mini", pooling="cls+mean", mpp=0.5, patch_size=224),
    ],
)
def test_a_fingerprint_comes_back_whole_from_tridents_file(
    made: Fingerprint, tmp_path: Path
) -> None:
    path = write_bag(make_bag().replace(encoder=made), tmp_path / "own" / "S1.h5")
    file = one(convert(path, tmp_path / "t", "trident")).files[0]
    assert read_features(file).encoder == made
    assert read_header(one(convert(file, tmp_path / "w")).files[0]).fingerprint == made
    with h5py.File(file, "r+") as h5:
        h5["features"].attrs["encoder"] = "virchow2"
    assert read_features(file).encoder == Fingerprint("virchow2", mpp=0.5, patch_size=224)


OVERLAPPING = Bag(
    make_bag(30, 5, 256.0).features,
    make_bag(30, 5, 256.0).coords,
    spacing=256.0, footprint=512.0, mpp=0.25, slide_id="S1",
    encoder=Fingerprint("uni", mpp=128 / 224, patch_size=224),
)  # fmt: skip


@pytest.mark.parametrize("to", WRITABLE)
def test_overlap_comes_back_or_is_refused_or_told(to: str, tmp_path: Path) -> None:
    facts = SlideFacts("S1", overlap=0.5)
    path = write_bag(OVERLAPPING, tmp_path / "own" / "S1.h5", facts=facts)
    (result,) = convert(path, tmp_path / "out", to)
    if to in ("span", "slideflow"):
        what = {"span": "SPAN's files have one step, 224, for", "slideflow": "and no width"}[to]
        assert "slide 'S1': its patches are 512 wide and 256 apart; " in result.reason
        assert what in result.reason
        assert "extract without overlap" in result.reason
        return
    assert result.reason == ""
    if to == "mil-baseline":
        assert "mil-baseline keeps no coordinates" in result.told
        return
    how = {**HOW.get(to, {}), **({"slide_mpp": 0.25} if to in ("clam", "stamp") else {})}
    back = read_features(again(result.files, to), **how)
    assert back.coords is not None and OVERLAPPING.coords is not None
    assert torch.equal(back.coords, OVERLAPPING.coords)
    assert back.spacing == 256.0
    assert ("no overlap" in result.told) == (to == "torchmil")
    assert back.footprint == (256.0 if to == "torchmil" else 512.0)


def test_trident_is_told_the_overlap_of_files_that_state_only_steps(tmp_path: Path) -> None:
    """Its `overlap` is in px of `patch_size`."""
    path = write_bag(OVERLAPPING, tmp_path / "S1.h5")
    one(convert(path, tmp_path / "out", "trident"))
    with h5py.File(tmp_path / "out" / "S1.h5", "r") as file:
        assert file["coords"].attrs["overlap"] == 112


LOSSES = {
    "wsizoo": "wsizoo keeps no label, no labels of patches",
    "trident": "trident keeps no label, no labels of patches",
    "clam": "clam keeps no um/px, no encoder, no label, no labels of patches",
    "span": "span keeps no place and scale, no encoder, no label",
    "stamp": "stamp keeps no um/px, no weights and preprocessing of the encoder, no label, no "
    "labels of patches",
    "slideflow": "slideflow keeps no um/px, no weights and preprocessing of the encoder, no label, "
    "no labels of patches",
    "torchmil": "torchmil keeps no um/px, no fractions of the step, no encoder",
    "mil-baseline": "mil-baseline keeps no coordinates, no encoder, no labels of patches",
}


@pytest.mark.parametrize("to", WRITABLE)
def test_what_a_format_has_no_place_for_is_told(to: str, tmp_path: Path) -> None:
    (tmp_path / "t" / "features").mkdir(parents=True)
    bag, folder = make_bag(), tmp_path / "t"
    for name, array in (
        ("features", bag.features), ("coords", bag.coords), ("labels", torch.tensor([1])),
        ("inst_labels", torch.zeros(30)),
    ):  # fmt: skip
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / "S1.npy", np.asarray(array))
    full = read_with_report(folder / "features" / "S1.npy", ReadAs("uni", slide_mpp=MPP)).bag
    full = full.replace(encoder=FULL)
    reading = read_with_report(folder / "features" / "S1.npy", ReadAs("uni", slide_mpp=MPP))
    with pytest.MonkeyPatch.context() as patch:
        whole = dataclasses.replace(reading, bag=full)
        patch.setattr("wsizoo.formats.convert.read_with_report", lambda *_: whole)
        result = one(convert(folder, tmp_path / "out", to))
    assert result.told == LOSSES[to]


def test_what_trident_needs_and_nobody_knows_is_asked_for_by_name(tmp_path: Path) -> None:
    how = ReadAs("uni", slide_mpp=0.25)
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"], file["coords"] = np.ones((2, 3)), np.array([[0, 0], [512, 0]])
    (result,) = convert(tmp_path / "S1.h5", tmp_path / "out", "trident", how=how)
    assert (
        "files state patch_size, target_magnification, which is not known of it. The patches' "
        in (result.reason)
    )
    advice = "wsizoo.write_bag(bag.replace(encoder=wsizoo.Fingerprint('uni', patch_size=256, mpp=0"
    assert advice in result.reason
    assert "--mpp" not in result.reason
    bag = read_features(tmp_path / "S1.h5", "uni", 0.25)
    bag = bag.replace(encoder=Fingerprint("uni", patch_size=256, mpp=0.5))
    one(convert(write_bag(bag, tmp_path / "w" / "S1.h5"), tmp_path / "out", "trident"))
    lone = bag.replace(
        features=bag.features[:1], coords=torch.zeros(1, 2).long(), spacing=None, footprint=None
    )
    path = write_bag(lone, tmp_path / "lone" / "S1.h5")
    (result,) = convert(path, tmp_path / "out", "trident", overwrite=True)
    assert "files state patch_size_level0, which is not known" in result.reason
    assert "mpp=0.5), footprint=512.0), 'FILE.h5'); then convert that" in result.reason
    path = write_bag(bag.replace(mpp=None, encoder=Fingerprint("uni", patch_size=256)), path)
    (result,) = convert(path, tmp_path / "out", "trident", overwrite=True)
    assert result.reason.endswith("State the slide's um per px: --mpp 0.25")


def test_a_bad_file_does_not_stop_the_others(own: Path, tmp_path: Path) -> None:
    (own.parent / "S2.h5").write_bytes(own.read_bytes()[:900])
    seen: list[Converted] = []
    results = convert(own.parent, tmp_path / "out", "trident", after_slide=seen.append)
    assert [bool(result.reason) for result in results] == [False, True]
    assert seen == results
    assert "truncated or damaged" in results[1].reason
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["S1.h5"]


def test_nothing_is_replaced_unless_that_is_said(own: Path, tmp_path: Path) -> None:
    one(convert(own, tmp_path / "out", "trident"))
    before = (tmp_path / "out" / "S1.h5").read_bytes()
    (result,) = convert(own, tmp_path / "out", "stamp")
    assert "S1.h5' exists. Choose another folder, or replace it: --over" in result.reason
    assert (tmp_path / "out" / "S1.h5").read_bytes() == before
    one(convert(own, tmp_path / "out", "stamp", overwrite=True))


def test_a_failed_write_leaves_the_old_file(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one(convert(own, tmp_path / "out", "trident"))
    before = (tmp_path / "out" / "S1.h5").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wsizoo.files.os.fsync", full)
    (result,) = convert(own, tmp_path / "out", "trident", overwrite=True)
    assert "cannot be written: [Errno 28] No space left" in result.reason
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["S1.h5"]
    assert (tmp_path / "out" / "S1.h5").read_bytes() == before


def test_what_cannot_be_converted_is_said_before_any(own: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'lazyslide' is not written; choose one of: wsizoo, tri"):
        convert(own, tmp_path / "out", "lazyslide")
    with pytest.raises(DataError, match=r"none' is not there"):
        convert(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no feature files"):
        convert(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="a table without the columns slide_path and label"):
        convert(tmp_path / "t.csv", tmp_path / "out")
    other = write_bag(make_bag(), tmp_path / "other" / "S1.h5")
    with pytest.raises(DataError, match=r"have one name \(S1\), so what is written of one"):
        convert([own, other], tmp_path / "out")
    assert len(list_sources([own, own])) == 1


def test_what_a_format_must_state_and_is_not_known_is_asked_for(tmp_path: Path) -> None:
    bag = make_bag(mpp=None).replace(encoder=Fingerprint("uni"))
    path = write_bag(bag, tmp_path / "S1.h5")
    (result,) = convert(path, tmp_path / "out", "stamp")
    assert "STAMP's coordinates are in um, and of this slide um per px are not known" in (
        result.reason
    )
    (result,) = convert(path, tmp_path / "out", "trident")
    assert "TRIDENT's files state patch_size, level0_magnification, target" in result.reason
    flat = write_bag(bag.replace(coords=None, spacing=None), tmp_path / "flat" / "S1.h5")
    (result,) = convert(flat, tmp_path / "out", "stamp")
    assert "and of this slide there are none" in result.reason
    (result,) = convert(flat, tmp_path / "out", "span")
    assert "S1 has no coords, so no grid" in result.reason
    one(convert(flat, tmp_path / "out", "slideflow"))
    other = write_bag(bag.replace(encoder=Fingerprint("plip")), tmp_path / "o" / "S2.h5")
    (result,) = convert(other, tmp_path / "out", "slideflow")
    assert "bags_config.json' describes other bags" in result.reason


def test_out_may_be_the_file_of_one_slide(tmp_path: Path) -> None:
    source = write_bag(Bag(torch.randn(4, 3), encoder="uni", slide_id="a"), tmp_path / "a.h5")
    (result,) = convert(source, tmp_path / "new" / "b.h5", "trident")
    assert result.reason == ""
    assert read_features(tmp_path / "new" / "b.h5", encoder="uni").slide_id == "b"
    other = write_bag(Bag(torch.randn(4, 3), encoder="uni"), tmp_path / "c.h5")
    with pytest.raises(DataError, match=r"is one file for 2 slides; give a folder"):
        convert([source, other], tmp_path / "d.h5")
    with pytest.raises(DataError, match=r"clam keeps a slide in files of its own; give a folder"):
        convert(source, tmp_path / "d.h5", "clam")


def test_the_command_takes_out_last_or_as_an_option(tmp_path: Path) -> None:
    source = write_bag(Bag(torch.randn(4, 3), encoder="uni"), tmp_path / "a.h5")
    run = CliRunner().invoke
    assert run(cli, ["convert", str(source), str(tmp_path / "x")]).exit_code == 0
    assert run(cli, ["convert", str(source), "-o", str(tmp_path / "y")]).exit_code == 0
    assert (tmp_path / "x" / "a.h5").exists() and (tmp_path / "y" / "a.h5").exists()
    missing = run(cli, ["convert", str(source)])
    assert missing.exit_code == 2
    assert "where to?" in missing.output
