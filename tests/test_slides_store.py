"""wsizoo.slides.store: a feature file says what it holds, and is never half, nor damaged unseen."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides.facts import SlideFacts
from wsizoo.slides.store import (
    check_content,
    read_bag,
    read_header,
    read_thumbnail,
    write_bag,
    writing,
)

MADE = Fingerprint("uni", "abc", None, "resize", "cls", 0.5, 224)
FACTS = SlideFacts("A1", 20_000, 10_000, "q" * 64, "file", 0.25, 0.4)


def make_bag(n: int = 12, dim: int = 5) -> Bag:
    generator = torch.Generator().manual_seed(1)
    cells = torch.stack([torch.arange(n) % 4, torch.arange(n) // 4], 1)
    coords = (cells.double() * 368.4).round().long()
    features = torch.randn(n, dim, generator=generator)
    return Bag(
        features, coords, spacing=368.4, footprint=491.2, mpp=0.2277, encoder=MADE, slide_id="A1"
    )


def thumbnail() -> tuple[np.ndarray, float]:
    ramp = np.linspace(0, 255, 60 * 40 * 3).reshape(40, 60, 3)
    return ramp.astype(np.uint8), 333.3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_bag(make_bag(), tmp_path / "A1.h5", facts=FACTS, thumbnail=thumbnail())


def test_a_bag_comes_back_as_it_was(path: Path) -> None:
    bag, back = make_bag(), read_bag(path)
    assert torch.equal(back.features, bag.features)
    assert back.coords is not None
    assert torch.equal(back.coords, bag.coords)
    for name in ("spacing", "footprint", "mpp", "encoder", "slide_id"):
        assert getattr(back, name) == getattr(bag, name)
    assert torch.equal(back.grid(), bag.grid())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n=st.integers(0, 30), dim=st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64, torch.bfloat16]),
    coords=st.booleans(), spacing=st.none() | st.floats(1, 5000), mpp=st.none() | st.floats(0.1, 1),
)  # fmt: skip
def test_any_bag_comes_back(
    tmp_path: Path, n: int, dim: int, dtype: torch.dtype, coords: bool,
    spacing: float | None, mpp: float | None,
) -> None:  # fmt: skip
    xy = torch.randint(0, 100_000, (n, 2)) if coords else None
    bag = Bag(torch.randn(n, dim).to(dtype), xy, spacing=spacing, mpp=mpp, slide_id="any")
    back = read_bag(write_bag(bag, tmp_path / "any.h5"))
    assert torch.equal(back.features.double(), bag.features.double())
    assert (back.coords is None) if xy is None else torch.equal(back.coords, xy)
    assert (back.spacing, back.mpp, back.encoder) == (spacing, mpp, Fingerprint())


def test_pixels_come_back(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 3, 8, 8)).to(torch.uint8)
    path = write_bag(Bag(pixels), tmp_path / "p.h5")
    assert torch.equal(read_bag(path).features, pixels)
    assert (read_header(path).n, read_header(path).dim) == (3, None)


def test_the_header_tells_what_was_written(path: Path) -> None:
    header = read_header(path)
    assert (header.n, header.dim, header.fingerprint, header.facts) == (12, 5, MADE, FACTS)
    assert (header.spacing, header.footprint, header.mpp) == (368.4, 491.2, 0.2277)


def test_the_thumbnail_comes_back_or_is_none(path: Path, tmp_path: Path) -> None:
    stored = read_thumbnail(path)
    assert stored is not None
    assert stored[1] == 333.3
    assert np.abs(stored[0].astype(int) - thumbnail()[0]).mean() < 8
    assert read_thumbnail(write_bag(make_bag(), tmp_path / "bare.h5")) is None


def test_other_tools_find_the_datasets_and_attributes_they_read(path: Path) -> None:
    with h5py.File(path, "r") as file:
        assert file["features"].shape == (12, 5)
        assert file["features"].dtype == np.float32
        assert file["features"].chunks is None  # contiguous: chunks of one row are slow to read
        assert file["coords"].dtype == np.int64
        assert np.array_equal(file["grid"][()], make_bag().grid())
        told = dict(file["coords"].attrs)
    assert told["name"] == "A1"
    assert (told["level0_width"], told["level0_height"]) == (20_000, 10_000)
    assert (told["patch_size"], told["patch_size_level0"], told["overlap"]) == (224, 491, 56)
    assert (told["level0_magnification"], told["target_magnification"]) == (44, 20)
    assert told["footprint_level0_float"] == 491.2
    for name in ("patch_size", "patch_size_level0", "overlap", "level0_magnification"):
        assert isinstance(told[name], np.integer)


def test_a_damaged_byte_is_never_read_as_a_feature(path: Path) -> None:
    whole = path.read_bytes()
    bag = make_bag()
    found = 0
    for at in range(0, len(whole), max(1, len(whole) // 250)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            back = read_bag(path)
        except DataError:
            found += 1
            continue
        assert torch.equal(back.features, bag.features)
        assert torch.equal(back.coords, bag.coords)
        assert (back.spacing, back.mpp, back.encoder) == (bag.spacing, bag.mpp, bag.encoder)
    assert found > 50


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_damaged(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"damaged.*Delete it.*--overwrite"):
        read_bag(path)


@pytest.mark.parametrize("change", [{"spacing": 368.5}, {"mpp": 0.5}, {"fingerprint": {}}])
def test_a_changed_header_is_damage_too(path: Path, change: dict[str, object]) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["wsizoo"] = json.dumps({**json.loads(file.attrs["wsizoo"]), **change})
    with pytest.raises(DataError, match="does not match its digest"):
        read_bag(path)


def test_an_unfinished_file_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(DataError, match=r"is not complete.*--overwrite"):
        read_bag(path)


def test_a_newer_layout_asks_for_a_newer_wsizoo(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["wsizoo"] = json.dumps({**json.loads(file.attrs["wsizoo"]), "schema": 99})
    with pytest.raises(DataError, match=r"schema 99, this wsizoo reads 2: pip install"):
        read_header(path)


@pytest.mark.parametrize("told", ["{", "[]", "{}", '{"schema": 2}', "null"])
def test_a_header_of_nonsense_is_damaged(path: Path, told: str) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["wsizoo"] = told
    with pytest.raises(DataError, match="damaged"):
        read_header(path)


def test_files_of_other_kinds_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No feature file at"):
        read_bag(tmp_path / "absent.h5")
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["feats"] = np.zeros((2, 3))
    with pytest.raises(DataError, match=r"was not written by wsizoo \(it holds \['feats'\]\)"):
        read_bag(foreign)
    with h5py.File(foreign, "w") as file:
        file.attrs["wsizoo_slide"] = "{}"
    with pytest.raises(DataError, match="holds the embedding of a slide, expected features"):
        read_bag(foreign)
    foreign.write_text("not HDF5")
    with pytest.raises(DataError, match="cannot be read"):
        read_bag(foreign)


def test_what_cannot_be_one_feature_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a feature file's name to end in \.h5"):
        write_bag(make_bag(), tmp_path / "a.pt")
    with pytest.raises(DataError, match="joins 2 slides, expected one a file"):
        write_bag(Bag.concat([make_bag(), make_bag()]), tmp_path / "a.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_bag(make_bag(), tmp_path / "file" / "a.h5")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wsizoo.files.os.fsync", full)
    with pytest.raises(DataError, match=r"cannot be written.*No space left"):
        write_bag(make_bag(3), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["A1.h5"]


def test_features_written_in_parts_give_the_same_file(path: Path, tmp_path: Path) -> None:
    bag, other = make_bag(), tmp_path / "parts.h5"
    with writing(other, bag, facts=FACTS, thumbnail=thumbnail()) as write:
        for part in bag.features.split(5):
            write(part)
    assert read_header(other) == read_header(path)
    assert torch.equal(read_bag(other).features, bag.features)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([torch.zeros(5, 5)], "5 rows of features for 12 patches"),
        ([torch.zeros(13, 5)], "13 rows of features for 12 patches"),
        ([torch.zeros(6, 5), torch.zeros(6, 4)], r"from row 6 on are float32 \(4,\) each"),
        ([torch.zeros(6, 5), torch.zeros(6, 5).double()], "from row 6 on are float64"),
    ],
)
def test_parts_that_are_no_whole_leave_no_file(
    tmp_path: Path, parts: list[torch.Tensor], match: str
) -> None:
    def write_all() -> None:
        with writing(tmp_path / "a.h5", make_bag()) as write:
            for part in parts:
                write(part)

    with pytest.raises(DataError, match=match):
        write_all()
    assert list(tmp_path.iterdir()) == []


def test_content_is_checked_block_by_block(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsizoo.slides._rows.BLOCK_BYTES", 64)
    assert check_content(path) == read_header(path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(make_bag().features.numpy()[7].tobytes())] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match="does not match its digest"):
        check_content(path)
