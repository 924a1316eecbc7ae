"""wsizoo.extraction: many slides, one bad one never stops the others, and a rerun goes on."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from wsizoo.errors import BackendError, DataError, NotFoundError
from wsizoo.extraction import folders
from wsizoo.extraction.cohort import extract
from wsizoo.extraction.folders import check_writable, remove_stale
from wsizoo.extraction.job import Extracted
from wsizoo.interfaces import Encoder
from wsizoo.slides.extract import Request
from wsizoo.slides.reader import Pixels
from wsizoo.slides.store import read_bag
from wsizoo.slides.tiff import write_pyramid


class MeanColour(Encoder):
    """Mean of red, green and blue; may be told to fail."""

    name, dim, mpp, patch_size, preprocessing = "mean-colour", 3, 0.5, 64, "mean"

    def __init__(self, fail: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.calls, self.fail = 0, fail

    def forward(self, patches: Tensor) -> Tensor:
        self.calls += 1
        if self.fail:
            self.fail(self.calls)
        return patches.float().mean((2, 3))


def tissue_image(width: int = 900, height: int = 700, seed: int = 0) -> Pixels:
    """Light background, a box of noisy tissue."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 243, np.uint8)
    noise = rng.integers(-25, 25, (height - 200, width - 200, 1))
    image[100:-100, 100:-100] = np.array([185, 105, 160]) + noise
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good slides."""
    folder = tmp_path_factory.mktemp("slides")
    for i in range(3):
        write_pyramid(folder / f"S{i}.svs", tissue_image(900 + 70 * i, seed=i), 0.5, (1, 4))
    return folder


def features(out: Path) -> dict[str, Tensor]:
    return {file.name: read_bag(file).features for file in sorted(out.glob("*.h5"))}


def report(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "extract.csv", newline="", encoding="utf-8") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def states(results: list[Extracted]) -> dict[str, str]:
    return {result.slide_id: result.state for result in results}


def test_a_folder_of_slides_becomes_one_feature_file_each(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "features"
    seen: list[Extracted] = []
    results = extract(folder, MeanColour(), out, after_slide=seen.append)
    assert states(results) == dict.fromkeys(["S0", "S1", "S2"], "done")
    assert seen == results
    assert sorted(features(out)) == ["S0.h5", "S1.h5", "S2.h5"]
    assert [r.patches for r in results] == [len(f) for f in features(out).values()]
    assert report(out)["S1"]["state"] == "done"
    assert report(out)["S1"]["patches"] == str(results[1].patches)


def test_a_rerun_verifies_and_keeps_what_is_there(folder: Path, tmp_path: Path) -> None:
    extract(folder, MeanColour(), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.h5")}
    encoder = MeanColour()
    assert set(states(extract(folder, encoder, tmp_path)).values()) == {"present"}
    assert encoder.calls == 0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.h5")} == before


def test_a_damaged_file_fails_its_slide_only_and_overwrite_mends_it(
    folder: Path, tmp_path: Path
) -> None:
    extract(folder, MeanColour(), tmp_path)
    good = features(tmp_path)
    whole = (tmp_path / "S1.h5").read_bytes()
    (tmp_path / "S1.h5").write_bytes(whole[: len(whole) // 2])
    results = extract(folder, MeanColour(), tmp_path)
    assert states(results) == {"S0": "present", "S1": "failed", "S2": "present"}
    assert "Delete it" in results[1].reason
    assert "--overwrite" in results[1].reason
    assert report(tmp_path)["S1"]["reason"] == results[1].reason
    results = extract(folder, MeanColour(), tmp_path, overwrite=True)
    assert states(results) == {"S0": "present", "S1": "done", "S2": "present"}
    assert all(torch.equal(good[name], f) for name, f in features(tmp_path).items())


def without_scale(path: Path) -> Path:
    return write_pyramid(path, tissue_image(), 0.5, (1,), description=False, resolution=False)


def anisotropic(path: Path) -> Path:
    tifffile.imwrite(
        path, tissue_image(), tile=(256, 256), photometric="rgb",
        resolution=(20_000, 25_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


def test_every_kind_of_bad_slide_is_reported_and_the_good_ones_are_done(
    folder: Path, tmp_path: Path
) -> None:
    bad, flat = tmp_path / "bad", np.full((500, 500, 3), 243, np.uint8)
    bad.mkdir()
    (bad / "text.svs").write_text("hello")
    (bad / "empty.svs").write_bytes(b"")
    write_pyramid(bad / "tiny.svs", flat[:30, :30], 0.5, (1,))
    write_pyramid(bad / "blank.svs", flat, 0.5, (1,))
    write_pyramid(bad / "dark.svs", flat // 20, 0.5, (1,))
    write_pyramid(bad / "screen.tif", tissue_image(), 264.6, (1,), description=False)
    write_pyramid(bad / "coarse.svs", tissue_image(), 8.0, (1,))
    without_scale(bad / "scaleless.tif")
    anisotropic(bad / "oblong.tif")
    results = extract([bad, folder], MeanColour(), tmp_path / "out")
    reasons = {r.slide_id: r.reason for r in results if r.reason}
    for name, why in {
        "text": "in no format OpenSlide reads",
        "empty": "in no format OpenSlide reads",
        "tiny": "15 x 15 um, smaller than one patch of 32 um",
        "blank": "none was found at all",
        "dark": "no brightfield slide",
        "screen": "264.6 x 264.6 microns per pixel",
        "coarse": "too coarse for patches at 0.5",
        "scaleless": "states no microns per pixel. If you know the scanner's, state it: --mpp",
        "oblong": "0.5 um/px in x and 0.4 in y",
    }.items():
        assert why in reasons.pop(name)
    assert reasons == {}
    assert sorted(features(tmp_path / "out")) == ["S0.h5", "S1.h5", "S2.h5"]


def test_a_scale_that_is_stated_by_the_user_serves_slides_without_one(tmp_path: Path) -> None:
    slide = without_scale(tmp_path / "a.tif")
    (result,) = extract(slide, MeanColour(), tmp_path / "out", request=Request(slide_mpp=0.5))
    assert result.state == "done"


def test_an_unexpected_error_fails_its_slide_and_says_its_kind(
    folder: Path, tmp_path: Path
) -> None:
    def out_of_memory_at_first(call: int) -> None:
        if call == 1:
            raise RuntimeError("out of memory")

    results = extract(folder, MeanColour(out_of_memory_at_first), tmp_path)
    assert states(results) == {"S0": "failed", "S1": "done", "S2": "done"}
    assert results[0].reason == "RuntimeError: out of memory"


def test_an_interrupted_run_keeps_what_was_finished_and_nothing_half(
    folder: Path, tmp_path: Path
) -> None:
    def interrupt(call: int) -> None:
        if call == 4:  # two batches a slide
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(folder, MeanColour(interrupt), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".S1.h5.partial",
        "S0.h5",
        "extract.csv",
        "extract.html",
    ]
    assert list(report(tmp_path)) == ["S0"]
    encoder = MeanColour()
    assert states(extract(folder, encoder, tmp_path)) == {
        "S0": "present", "S1": "done", "S2": "done",
    }  # fmt: skip
    assert encoder.calls == 3  # of four: the first batch of S1 was kept
    assert not list(tmp_path.glob(".*.partial"))


def test_two_workers_give_the_same_bytes_as_one(folder: Path, tmp_path: Path) -> None:
    one = extract(folder, "handcrafted-he", tmp_path / "one")
    seen: list[str] = []
    two = extract(
        folder, "handcrafted-he", tmp_path / "two", workers=2,
        after_slide=lambda result: seen.append(result.slide_id),
    )  # fmt: skip
    assert sorted(seen) == ["S0", "S1", "S2"]
    assert [(r.slide_id, r.state, r.patches) for r in two] == [
        (r.slide_id, r.state, r.patches) for r in one
    ]
    for name, found in features(tmp_path / "one").items():
        assert torch.equal(features(tmp_path / "two")[name], found)
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_encoder_that_workers_cannot_get_is_refused_before_any_slide(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"'mean-colour' cannot be sent to worker processes"):
        extract(folder, MeanColour(lambda call: None), tmp_path, workers=2)


def test_nothing_is_begun_when_the_call_is_wrong(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "slide.svs").mkdir()
    with pytest.raises(DataError, match="No slides given"):
        extract([], MeanColour(), out)
    with pytest.raises(DataError, match=r"No file or folder at '.*absent\.svs'"):
        extract([folder, folder / "absent.svs"], MeanColour(), out)
    with pytest.raises(DataError, match=r"'.*' is a folder that holds no file ending in \.bif"):
        extract(tmp_path / "slide.svs", MeanColour(), out)
    with pytest.raises(NotFoundError, match="nonesuch"):
        extract(folder, "nonesuch", out)
    assert not list(out.glob("*.h5"))


def test_two_slides_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    twin = tmp_path / "S1.tiff"
    twin.write_bytes((folder / "S1.svs").read_bytes())
    with pytest.raises(DataError, match=r"S1\.svs' and '.*S1\.tiff' have one name \(S1\)"):
        extract([folder, twin], MeanColour(), tmp_path / "out")


def test_a_slide_that_is_given_twice_is_one_slide(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere.svs"
    link.symlink_to(folder / "S0.svs")
    results = extract([folder / "S0.svs", folder, link], MeanColour(), tmp_path / "out")
    assert [r.slide_id for r in results] == ["S0", "S1", "S2"]


def test_a_folder_that_cannot_be_written_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"output folder '.*file' cannot be made"):
        extract(folder, MeanColour(), tmp_path / "file")

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folders.tempfile, "TemporaryFile", read_only)
    with pytest.raises(DataError, match=r"written into \(Read-only .*\); choose another with -o"):
        check_writable(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot be written into"):
        extract(folder, MeanColour(), tmp_path)


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_old_temporary_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    dead, old = ended_process(), time.time() - 7200
    stale = tmp_path / f".S0.h5.tmp-{dead}"
    kept = [
        tmp_path / f".S1.h5.tmp-{os.getpid()}",  # its process lives
        tmp_path / f".S2.h5.tmp-{dead}.h5",
        tmp_path / f"S3.h5.tmp-{dead}",
        tmp_path / "S4.h5",
    ]
    fresh = tmp_path / f".S5.h5.tmp-{dead}"  # another computer may be writing it
    for file in (stale, *kept, fresh):
        file.write_text("half")
        os.utime(file, (old, old))
    os.utime(fresh)
    (tmp_path / f".folder.tmp-{dead}").mkdir()
    assert remove_stale(tmp_path) == [stale]
    assert not stale.exists()
    assert all(file.exists() for file in (*kept, fresh))


def test_a_run_clears_its_folder_of_what_killed_runs_left(folder: Path, tmp_path: Path) -> None:
    left = tmp_path / f".S0.h5.tmp-{ended_process()}"
    left.write_text("half")
    os.utime(left, (0, 0))
    extract(folder / "S0.svs", MeanColour(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "S0.h5",
        "extract.csv",
        "extract.html",
    ]


def test_the_report_keeps_rows_of_earlier_calls(folder: Path, tmp_path: Path) -> None:
    extract(folder / "S0.svs", MeanColour(), tmp_path)
    extract(folder / "S2.svs", MeanColour(), tmp_path)
    assert list(report(tmp_path)) == ["S0", "S2"]
    (tmp_path / "extract.csv").write_bytes(b"\xff\xfenonsense")
    extract(folder / "S1.svs", MeanColour(), tmp_path)
    assert list(report(tmp_path)) == ["S1"]


SLOW_RUN = """
import sys, time
from wsizoo.interfaces import Encoder
from wsizoo.extraction.cohort import extract

class Slow(Encoder):
    name, dim, mpp, patch_size = "slow", 3, 0.5, 64
    def forward(self, patches):
        print("encoding", flush=True)
        time.sleep(float(sys.argv[4]))
        return patches.float().mean((2, 3))

if __name__ == "__main__":
    extract(sys.argv[1], Slow(), sys.argv[2], workers=int(sys.argv[3]))
"""


def start_slow_run(
    script: Path, folder: Path, out: Path, workers: int, seconds: float
) -> subprocess.Popen[str]:
    script.write_text(SLOW_RUN)
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(out), str(workers), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "encoding\n"
    return process


def group_members(group: int) -> list[str]:
    listed = subprocess.check_output(["ps", "-ww", "-eo", "pgid=,pid=,stat="], text=True)
    rows = [line.split() for line in listed.splitlines()]
    return [pid for pgid, pid, stat in rows if int(pgid) == group and stat[0] != "Z"]


def check_group_ends(group: int) -> None:
    """No process of the group is left, some seconds later at the most."""
    deadline = time.monotonic() + 10
    while group_members(group) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert group_members(group) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_outright_leaves_nothing_half_and_no_process(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    process = start_slow_run(tmp_path / "run.py", folder, out, workers, 30)
    process.kill()
    process.communicate()
    check_group_ends(process.pid)
    assert list(out.glob("*.h5")) == []
    assert set(states(extract(folder, MeanColour(), out)).values()) == {"done"}


@pytest.mark.slow
@pytest.mark.parametrize("to_group", [False, True])
def test_an_interrupted_run_of_workers_ends_at_once(
    folder: Path, tmp_path: Path, to_group: bool
) -> None:
    out = tmp_path / "out"
    process = start_slow_run(tmp_path / "run.py", folder, out, 2, 30)
    start = time.monotonic()
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 15
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert "spawn_main" not in errors  # no trace from the workers
    check_group_ends(process.pid)
    assert list(out.glob("*.h5")) == []


def test_the_encoder_is_moved_to_the_device_and_features_come_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(MeanColour, "to", lambda self, device: asked.append(device), raising=False)
    (result,) = extract(folder / "S0.svs", MeanColour(), tmp_path / "a", device="cpu")
    assert (result.state, asked) == ("done", ["cpu"])
    extract(folder / "S0.svs", MeanColour(), tmp_path / "b")
    assert asked == ["cpu"]
    with pytest.raises(BackendError, match="device 'cuda:77' cannot be used here"):
        extract(folder, MeanColour(), tmp_path / "c", device="cuda:77")
    assert not (tmp_path / "c").exists()
