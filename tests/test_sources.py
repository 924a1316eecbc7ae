"""wsizoo.sources: features and models meet in one place, and it is known how."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import wsizoo
from wsizoo.bag import Bag
from wsizoo.cli import cli
from wsizoo.errors import FingerprintError
from wsizoo.fingerprint import Fingerprint, Meeting
from wsizoo.model import SlideModel
from wsizoo.slides.extract import Request
from wsizoo.slides.manifest import SlideEntry
from wsizoo.slides.store import write_bag
from wsizoo.sources import FeatureSource, Needs, is_features, meet


@pytest.fixture(scope="module")
def model() -> SlideModel:
    return wsizoo.load("abmil-demo")


def bag_of(made: Fingerprint | None, dim: int = 208) -> Bag:
    coords = torch.tensor([[0, 0], [448, 0], [0, 448]])
    features = torch.randn(3, dim, generator=torch.Generator().manual_seed(0))
    return Bag(features, coords, spacing=448.0, mpp=0.25, encoder=made, slide_id="S1")


def test_features_of_the_models_encoder_come_as_they_are(model: SlideModel) -> None:
    bag = bag_of(model.requires)
    taken, meeting = meet(model, bag)
    assert taken is bag
    assert (meeting, meeting.stamp()) == (Meeting(), {})


def test_others_are_refused_even_where_widths_agree_unless_forced(model: SlideModel) -> None:
    bag = bag_of(Fingerprint("uni", mpp=1.0, declared=True))
    with pytest.raises(FingerprintError, match=r"Widths may agree.*every output marked: --force"):
        meet(model, bag)
    taken, meeting = meet(model, bag, force=True)
    assert meeting.forced == "encoder uni, not handcrafted-he; mpp 1.0, not 0.5"
    assert meeting.declared
    assert "preprocessing" in meeting.unverified
    assert set(meeting.stamp()) == {"forced", "unverified", "declared"}
    assert model(taken).logits is not None


def test_what_features_do_not_state_is_unverified(model: SlideModel) -> None:
    name = model.requires.encoder
    taken, meeting = meet(model, bag_of(Fingerprint(name, declared=True)))
    assert not meeting.forced
    assert meeting.declared and "mpp" in meeting.unverified
    assert "encoder" in meet(model, bag_of(None))[1].unverified
    assert taken.encoder is not None


def test_feature_files_are_told_from_slides_by_name() -> None:
    assert all(is_features(Path(name)) for name in ("a.h5", "a.pt", "a.npy", "a.zarr", "a.H5"))
    assert not any(is_features(Path(name)) for name in ("a.svs", "a.tiff", "a", "a.csv"))


def test_um_per_px_that_contradict_the_file_fail_also_where_an_answer_is_there(
    tmp_path: Path,
) -> None:
    path = write_bag(bag_of(wsizoo.load("abmil-demo").requires), tmp_path / "S1.h5")
    line = ["predict", str(path), "-m", "abmil-demo", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(cli, line).exit_code == 0
    assert CliRunner().invoke(cli, [*line, "--mpp", "0.25"]).exit_code == 0
    result = CliRunner().invoke(cli, [*line, "--mpp", "0.5"])
    assert result.exit_code == 1
    assert "states 0.25 um per level-0 px, you said 0.5" in result.output


def test_um_per_px_that_a_file_lacks_make_another_answer(model: SlideModel, tmp_path: Path) -> None:
    bag = bag_of(model.requires).replace(mpp=None)
    entry = SlideEntry(write_bag(bag, tmp_path / "S1.h5"))
    digests = set()
    for mpp in (None, 0.25, 0.5):
        source = FeatureSource(model, tmp_path, Needs(Request(slide_mpp=mpp)))
        taken = source.take(entry)
        assert taken.bag.mpp == mpp
        assert taken.digest == source.digest(entry)
        digests.add(taken.digest)
    assert len(digests) == 3


def test_the_command_line_forces(tmp_path: Path) -> None:
    other = write_bag(bag_of(Fingerprint("uni")), tmp_path / "other.h5")
    line = ["predict", str(other), "-m", "abmil-demo", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 1
    assert "--force" in result.output
    result = CliRunner().invoke(cli, [*line, "--force", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output.splitlines()[0])["forced"].startswith("encoder uni, not")
    line = ["embed", str(other), "-m", "abmil-demo", "-o", str(tmp_path / "e"), "--force"]
    assert CliRunner().invoke(cli, line).exit_code == 0
