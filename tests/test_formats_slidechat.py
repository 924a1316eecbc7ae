"""SlideChat's feature files: a csv a slide, of which the first 512 columns are features."""

from pathlib import Path

import pytest
import torch

import wsizoo
from wsizoo.errors import DataError
from wsizoo.formats.convert import convert
from wsizoo.formats.detect import detect
from wsizoo.formats.read import ReadAs
from wsizoo.formats.slidechat import write_features

FEATURES = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_features(tmp_path / "S1.csv", FEATURES)
    bag = wsizoo.read_bag(tmp_path / "S1.csv", encoder="conch")
    assert torch.equal(bag.features, FEATURES)
    assert (bag.slide_id, bag.coords, bag.encoder.encoder) == ("S1", None, "conch")


def test_later_columns_are_not_read(tmp_path: Path) -> None:
    write_features(tmp_path / "S1.csv", FEATURES)
    head, *rows = (tmp_path / "S1.csv").read_text().splitlines()
    told = [f'{row},"patch, {i}#1",12_40' for i, row in enumerate(rows)]
    (tmp_path / "S2.csv").write_text("\n".join([head + ",name,place", *told, ""]))
    assert detect(tmp_path / "S2.csv").name == "slidechat"
    bag = wsizoo.read_bag(tmp_path / "S2.csv", encoder="conch")
    assert torch.equal(bag.features, FEATURES)


def test_it_becomes_a_file_of_wsizoo(tmp_path: Path) -> None:
    write_features(tmp_path / "S1.csv", FEATURES)
    (done,) = convert(tmp_path / "S1.csv", tmp_path / "out", how=ReadAs(encoder="conch"))
    assert not done.reason
    assert torch.equal(wsizoo.read_bag(tmp_path / "out" / "S1.h5").features, FEATURES)


def test_a_slide_without_patches_says_so(tmp_path: Path) -> None:
    write_features(tmp_path / "S1.csv", FEATURES[:0])
    with pytest.raises(DataError, match=r"S1\.csv' holds no patches"):
        wsizoo.read_bag(tmp_path / "S1.csv", encoder="conch")


def test_a_cell_that_is_no_number_is_damage(tmp_path: Path) -> None:
    write_features(tmp_path / "S1.csv", FEATURES)
    text = (tmp_path / "S1.csv").read_text()
    (tmp_path / "S1.csv").write_text(text.replace("\n", "\nx", 2))
    with pytest.raises(DataError, match=r"S1\.csv' cannot be read: could not convert"):
        wsizoo.read_bag(tmp_path / "S1.csv", encoder="conch")


def test_features_of_another_width_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"are \(5, 3\); SlideChat's files hold \(N, 512\)"):
        write_features(tmp_path / "S1.csv", FEATURES[:, :3])
