"""wsizoo.formats.convert: what is written is what other tools read, and comes back as it was."""

import csv
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
from wsizoo.slides.facts import SlideFacts
from wsizoo.slides.store import read_bag, read_header, write_bag

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
    how = ReadAs("uni")
    one(convert(tmp_path / "S1.h5", tmp_path / "t", "torchmil", how=how))
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
