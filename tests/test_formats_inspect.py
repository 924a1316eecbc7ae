"""wsizoo.formats.inspection, and the commands inspect, convert and verify on feature files."""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner, Result

from wsizoo.bag import Bag
from wsizoo.cli import cli
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.inspection import Inspection, check, inspect
from wsizoo.formats.read import ReadAs, read_features
from wsizoo.slides.facts import SlideFacts
from wsizoo.slides.store import write_bag
from wsizoo.slides.tiff import write_pyramid

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "features").is_dir(), reason="no real files: set WSIZOO_DATA"
)
KEYS = ("format", "n", "dim", "encoder", "spacing", "mpp", "on_grid", "collisions", "complete")
CELLS = torch.stack([torch.arange(12) % 4, torch.arange(12) // 4], 1)


def invoke(*words: object) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def told(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.output.splitlines()]


def told_one(result: Result) -> dict[str, Any]:
    (line,) = told(result)
    return line


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_file(tmp_path)


def own_file(tmp_path: Path) -> Path:
    made = Fingerprint("uni", mpp=0.5, patch_size=224)
    bag = Bag(
        torch.randn(12, 6), (CELLS * 448.0).long(), spacing=448.0, mpp=0.25, encoder=made,
        slide_id="S1",
    )  # fmt: skip
    facts = SlideFacts("S1", 5000, 4000, mpp_source="file")
    return write_bag(bag, tmp_path / "S1.h5", facts=facts)


def clam(folder: Path, name: str = "C1") -> Path:
    coords = CELLS.numpy() * 512
    coords[8:] += 100
    coords[11] = coords[10]
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file["features"], file["coords"] = np.ones((12, 6), np.float32), coords.astype(np.int32)
    return folder / f"{name}.h5"


def test_a_file_of_wsizoo(own: Path) -> None:
    found = inspect(own)
    assert [getattr(found, key) for key in KEYS] == [
        "wsizoo", 12, 6, "uni", 448.0, 0.25, True, 0, True,
    ]  # fmt: skip
    assert (found.dtype, found.width, found.height, found.moved) == ("float32", 5000, 4000, 0)
    assert (found.patch_mpp, found.mpp_source, found.frame) == (0.5, "file", "level-0 px")
    assert found.fingerprint == {"encoder": "uni", "mpp": 0.5, "patch_size": 224}


def test_a_file_of_clam_is_not_on_one_grid(tmp_path: Path) -> None:
    found = inspect(clam(tmp_path))
    assert [getattr(found, key) for key in KEYS] == [
        "clam", 12, 6, None, 512.0, None, False, 1, True,
    ]  # fmt: skip
    assert found.moved == 4
    assert inspect(clam(tmp_path), ReadAs("uni")).encoder == "uni"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_not_complete_and_says_why(own: Path, share: float) -> None:
    own.write_bytes(own.read_bytes()[: int(own.stat().st_size * share)])
    found = inspect(own)
    assert not found.complete
    assert found.reason


def test_what_fails_keeps_the_format_that_was_recognised(tmp_path: Path) -> None:
    path = clam(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["features"]
        file["features"] = np.ones((7, 6), np.float32)
    found = inspect(path)
    assert (found.format, found.complete) == ("clam", False)
    assert "7 rows of features and 12 of coordinates" in found.reason


def test_a_flipped_byte_is_found_where_that_is_asked_for(own: Path) -> None:
    whole = bytearray(own.read_bytes())
    with h5py.File(own, "r") as file:
        at = whole.index(file["features"][()].tobytes())
    whole[at + 5] ^= 1
    own.write_bytes(whole)
    assert inspect(own).complete
    found = inspect(own, verify=True)
    assert not found.complete
    assert "does not match its digest" in found.reason
    with pytest.raises(DataError, match="does not match its digest"):
        check(own)


def test_features_of_others_are_checked_to_be_finite(tmp_path: Path) -> None:
    path = clam(tmp_path)
    assert check(path).n == 12
    with h5py.File(path, "r+") as file:
        file["features"][3, 2] = np.nan
    with pytest.raises(DataError, match=r"1 of 12 patches have NaN .* features, first patch 3"):
        check(path)


def test_bare_arrays_and_empty_slides(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    torch.save(torch.ones(4, 3), tmp_path / "a.pt")
    for name in ("npy", "pt"):
        found = inspect(tmp_path / f"a.{name}")
        assert (found.format, found.n, found.dim, found.on_grid) == (name, 4, 3, None)
        assert found.complete
    np.save(tmp_path / "v.npy", np.ones(1536, np.float32))
    assert "features are (1536,) float32, expected (N, D)" in inspect(tmp_path / "v.npy").reason
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["feats"], file["cords"] = np.ones((0, 3)), np.ones((0, 2))
    found = inspect(tmp_path / "e.h5")
    assert (found.n, found.complete) == (0, True)
    assert "holds no patches" in found.reason


def test_the_embedding_of_a_slide(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    told = {"slide": "S1", "model": "m", "requires": {"encoder": "uni", "mpp": 0.5}}
    with h5py.File(path, "w") as file:
        file["features"] = np.ones(7, np.float32)
        file.attrs["wsizoo_slide"] = json.dumps(told)
    for verify in (False, True):
        found = inspect(path, verify=verify)
        assert [getattr(found, key) for key in KEYS] == [
            "wsizoo-embedding", 1, 7, "uni", None, None, None, None, True,
        ]  # fmt: skip
        assert (found.model, found.reason, found.dtype) == ("m", "", "float32")
    result = invoke("inspect", path, "--json")
    assert (result.exit_code, told_one(result)["model"]) == (0, "m")
    result = invoke("verify", path)
    assert result.exit_code == 0
    assert "format wsizoo-embedding, dim 7, model m, encoder uni" in result.output
    with pytest.raises(DataError, match=r"holds the embedding of a slide \(7 numbers\), expected"):
        read_features(path)
    with h5py.File(path, "r+") as file:
        file.attrs["wsizoo_slide"] = json.dumps({**told, "forced": "encoder plip, not uni"})
        file["features"][2] = np.nan
    assert inspect(path).reason.endswith("with --force, of other features: encoder plip, not uni")
    with pytest.raises(DataError, match="its embedding has NaN or infinite numbers"):
        check(path)


def test_the_embedding_of_a_slide_by_trident(tmp_path: Path) -> None:
    path = tmp_path / "slide_features_titan" / "S1.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones(7, np.float32), CELLS.numpy() * 512
        file["coords"].attrs.update(patch_size=256, patch_size_level0=512, target_magnification=20)
    found = check(path)
    assert (found.format, found.n, found.dim) == ("trident-embedding", 1, 7)
    assert (found.model, found.encoder, found.complete) == ("titan", None, True)


def test_pixels_have_no_width(tmp_path: Path) -> None:
    pixels = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    path = write_bag(Bag(pixels, CELLS * 64, spacing=64.0), tmp_path / "p.h5")
    assert (inspect(path).n, inspect(path).dim) == (12, None)
    assert told_one(invoke("inspect", path, "--json"))["dim"] is None
    lines = [" ".join(line.split()) for line in invoke("inspect", path).output.splitlines()]
    assert "dim -" in lines
    assert told_one(invoke("verify", path, "--json"))["dim"] is None
    assert "patches 12, dim -" in invoke("verify", path).output


def test_a_slide(tmp_path: Path) -> None:
    image = np.full((300, 400, 3), 200, np.uint8)
    found = inspect(write_pyramid(tmp_path / "a.tiff", image, 0.5, (1, 2)))
    assert (found.n, found.dim, found.spacing, found.mpp) == (None, None, None, 0.5)
    assert (found.width, found.height, found.levels) == (400, 300, [1.0, 2.0])
    assert found.complete
    bad = tmp_path / "b.svs"
    bad.write_text("no slide")
    found = inspect(bad)
    assert not found.complete
    assert "b.svs" in found.reason


def test_a_slide_without_microns_is_whole_and_says_what_it_lacks(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(
        tmp_path / "a.tiff", np.full((512, 512, 3), 200, np.uint8), photometric="rgb",
        tile=(256, 256),
    )  # fmt: skip
    found = inspect(tmp_path / "a.tiff")
    assert (found.complete, found.mpp, found.width) == (True, None, 512)
    assert "--mpp" in found.reason
    assert inspect(tmp_path / "a.tiff", ReadAs(slide_mpp=0.5)).mpp == 0.5


def test_the_command_prints_a_line_of_json_a_file(own: Path, tmp_path: Path) -> None:
    result = invoke("inspect", own, clam(tmp_path), "--json")
    assert result.exit_code == 0
    assert [each["format"] for each in told(result)] == ["wsizoo", "clam"]
    assert all(set(KEYS) <= set(each) for each in told(result))
    result = invoke("inspect", own, tmp_path / "none.h5", "--json")
    assert result.exit_code == 1
    assert [each["complete"] for each in told(result)] == [True, False]
    assert "There is no file" in told(result)[1]["reason"]


def test_the_command_prints_for_people(own: Path) -> None:
    result = invoke("inspect", own)
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    for line in ("format wsizoo", "n 12", "encoder uni", "on_grid yes", "complete yes"):
        assert line in lines
    assert "reason" not in result.output


def test_inspect_takes_what_a_file_cannot_say(tmp_path: Path) -> None:
    path = clam(tmp_path)
    (found,) = told(invoke("inspect", path, "--json", "--mpp", "0.25", "--encoder", "uni"))
    assert (found["mpp"], found["encoder"]) == (0.25, "uni")
    for option in ("--format", "--from"):
        (found,) = told(invoke("inspect", path, "--json", option, "span"))
        assert "'feats' is not there" in found["reason"]
        line = ("convert", path, tmp_path / "out", option, "span", "--json")
        assert "'feats' is not there" in told_one(invoke(*line))["reason"]
    (found,) = told(invoke("inspect", own_file(tmp_path), "--json", "--encoder", "plip"))
    assert "says that its features are of uni, you said plip" in found["reason"]


@needs_data
def test_every_real_file_is_inspected_without_a_traceback() -> None:
    files = [file for file in DATA.rglob("*") if file.is_file() and "/features/" in str(file)]
    assert len(files) > 5
    found = {file: inspect(file) for file in files}
    stamps = [found[file] for file in files if file.suffix == ".h5"]
    assert [each.format for each in stamps] == ["stamp"] * 3
    assert all(each.on_grid and each.complete for each in stamps)
    assert all(isinstance(each, Inspection) for each in found.values())


@needs_data
def test_every_real_slide_is_inspected_without_a_traceback() -> None:
    slides = [file for file in (DATA / "slides").rglob("*") if file.is_file()]
    for file in slides:
        found = inspect(file)
        assert found.complete or found.reason


def test_convert_on_the_command_line(own: Path, tmp_path: Path) -> None:
    result = invoke("convert", own, "-o", tmp_path / "out", "--to", "trident")
    assert result.exit_code == 0
    assert "done     S1  12 patches  from wsizoo" in result.output
    assert "1 of 1 slides written" in result.output
    result = invoke("convert", clam(tmp_path), "-o", tmp_path / "c")
    assert result.exit_code == 1
    assert "FAILED   C1" in result.output
    assert "--encoder NAME" in result.output
    line = ("convert", clam(tmp_path), "-o", tmp_path / "c", "--encoder", "uni", "--json")
    result = invoke(*line)
    assert result.exit_code == 1
    result = invoke(*line, "--collisions", "nearest")
    assert result.exit_code == 0
    (found,) = told(result)
    assert found["told"].startswith("4 of 12 patches moved onto the grid")
    assert found["files"] == [str(tmp_path / "c" / "C1.h5")]


def test_verify_knows_files_of_every_tool(own: Path, tmp_path: Path) -> None:
    result = invoke("verify", own, clam(tmp_path))
    assert result.exit_code == 0
    assert "format clam" in result.output
    own.write_bytes(own.read_bytes()[:-700])
    with h5py.File(clam(tmp_path, "C2"), "r+") as file:
        file["features"][0, 0] = np.inf
    torch.save({"no": "tensor"}, tmp_path / "p.pt")
    result = invoke("verify", tmp_path, tmp_path / "p.pt", tmp_path / "none.h5", "--json")
    assert result.exit_code == 1
    ok = {Path(each["name"]).name: each["ok"] for each in told(result)}
    assert ok == {"C1.h5": True, "C2.h5": False, "S1.h5": False, "p.pt": False, "none.h5": False}


def test_a_slide_that_was_cut_short_or_is_damaged_at_its_end_is_not_complete(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (600, 600, 3), np.uint8)
    whole = write_pyramid(tmp_path / "whole.svs", image, 0.5, (1,))
    assert inspect(whole).complete
    data = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as tiff:
        offset, count = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    data[offset + 20 : offset + count] = bytes(count - 20)
    (tmp_path / "torn.svs").write_bytes(data)
    found = inspect(tmp_path / "torn.svs")
    assert not found.complete
    assert "cannot be read" in found.reason
    (tmp_path / "cut.svs").write_bytes(whole.read_bytes()[: offset + count // 2])
    assert not inspect(tmp_path / "cut.svs").complete


def test_a_slide_whose_directories_come_first_shows_what_it_lost(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    path, cut = tmp_path / "whole.btf", tmp_path / "cut.btf"
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", bigtiff=True)
    assert inspect(path).complete
    cut.write_bytes(path.read_bytes()[:-300_000])
    found = inspect(cut)
    assert not found.complete
    assert found.reason
