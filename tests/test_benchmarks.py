"""The benchmarks of slides at tiny sizes: they run, and compare like with like."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _cohort, _encoder, _files, _probe, _reading, augment, pixelmamba, slides
from benchmarks._measure import cost_of, report_speed
from wsizoo.slides.reader import open_slide


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    block = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    return _reading.write_repeated(tmp_path_factory.mktemp("pyramid") / "p.svs", block, 1200)


@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_both_ways_of_reading_give_the_same_pixels(pyramid: Path, mpp: float) -> None:
    count = 4
    alone = _reading.ours(pyramid, mpp, count, threads=1)
    # what is resampled sees the px around a patch, the plain loop does not
    exact = 0 if mpp == _reading.MPP else 2e-3
    assert alone == pytest.approx(_reading.plain_loop(pyramid, mpp, count), rel=exact)
    assert alone == _reading.ours(pyramid, mpp, count, threads=2)


def test_reading_and_tissue_are_reported(pyramid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _reading.read(pyramid, "here", 0.5, rounds=1, patches=2)
    _reading.tissue(pyramid, overview=(100, 120))
    printed = capsys.readouterr().out
    assert "patches here, 1 thread" in printed
    assert "goal at least 1.7" in printed
    assert "an image of 120 x 100 px" in printed


def test_augmentation_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(augment, "GOALS", {300: 20.0})
    augment.run()
    assert "300 patches" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_pixels_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"REGIONS": 2, "EDGE": 32, "FUSED": 3, "ALPHAS": (0.8,)}.items():
        monkeypatch.setattr(pixelmamba, name, value)
    pixelmamba.run()
    printed = capsys.readouterr().out
    assert "6m: 6,264,210 parameters without a head" in printed
    assert "6m, 2 regions, forward + backward" in printed
    assert "alpha 0.8, 3 regions" in printed


def test_a_speed_is_the_others_time_over_mine(capsys: pytest.CaptureFixture[str]) -> None:
    report_speed("this", [1.0, 1.0, 1.0], [2.0, 3.0, 4.0], "that", 2)
    expected = "this: 3.000 x as fast as that (2.000 to 4.000, goal at least 2)"
    assert expected in capsys.readouterr().out


def test_the_shares_of_the_encoders_blocks_are_the_whole() -> None:
    shares = _encoder.shares(_encoder.patches(2), rounds=1)
    per_cent = [float(share.rpartition(" ")[2].rstrip("%")) for share in shares]
    assert len(shares) == len(_encoder.BLOCKS) + 1
    # the rest is a difference of times and may come out below 0 where the machine was busy
    assert sum(per_cent) == pytest.approx(100, abs=len(shares))


def test_the_encoders_patches_hold_tissue() -> None:
    patches = _encoder.patches(4)
    assert tuple(patches.shape) == (4, 3, 224, 224)
    assert patches.permute(0, 2, 3, 1).is_contiguous()
    assert patches.float().std() > 20


def test_feature_files_of_both_layouts_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _files.run(tmp_path, rows=64, dim=8, some=5, rounds=1)
    printed = capsys.readouterr().out
    assert "all rows, h5py" in printed
    assert "5 random rows, h5py" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_probe_finds_what_is_there_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 40)
    noise = random.standard_normal((80, 5))
    told = noise + 4 * (labels == "b")[:, None]
    pytest.importorskip("sklearn")
    assert np.mean(_probe.probe(told, labels, repeats=2)[0]) > 0.95
    assert np.mean(_probe.probe(noise, labels, repeats=2)[0]) < 0.7


def test_a_histogram_counts_each_channel() -> None:
    patch = np.zeros((1, 4, 4, 3), np.uint8)
    patch[..., 1], patch[..., 2] = 255, 16
    (row,) = _probe.histogram(patch)
    assert np.flatnonzero(row).tolist() == [0, 31, 33]
    assert (row**2).sum() == pytest.approx(3)


def test_a_probe_without_its_data_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_probe, "DATA", tmp_path)
    monkeypatch.setattr(_probe, "find_spec", lambda name: name)
    _probe.run(tmp_path)
    assert "left out, no" in capsys.readouterr().out
    monkeypatch.setattr(_probe, "find_spec", lambda name: None)
    assert "scikit-learn is not installed" in str(_probe.why_not(_probe.SETS[0]))


def test_the_slides_of_the_cohort_differ(tmp_path: Path) -> None:
    paths = _cohort.write_slides(tmp_path / "slides", 3, 512)
    images = []
    for path in paths:
        with open_slide(path) as slide:
            assert slide.size == (512, 512)
            images.append(slide.thumbnail(64)[0])
    assert not any(np.array_equal(images[0], image) for image in images[1:])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_the_memory_of_a_command_and_of_what_it_started_is_seen() -> None:
    hold = "import time; data = bytearray(60 * 2**20); time.sleep(0.5)"
    both = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}"
    cost = cost_of([sys.executable, "-c", f"{both}; p.wait()"], interval=0.05)
    assert 60 < cost.largest < 110
    assert 120 < cost.together < 220
    assert cost.seconds > 0.5


def test_a_command_that_fails_ends_the_benchmark_with_what_it_said() -> None:
    with pytest.raises(SystemExit, match="gave 3:\nso it goes"):
        cost_of([sys.executable, "-c", "print('so it goes'); raise SystemExit(3)"])


def test_every_part_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for part in (_reading, _encoder, _probe, _files, _cohort):
        monkeypatch.setattr(part, "run", lambda folder, name=part.__name__: called.append(name))
    slides.run()
    assert len(called) == len(set(called)) == 5


def test_backends_on_a_gpu_are_left_out_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wsizoo_plugin_span")
    from benchmarks import span_gpu

    monkeypatch.setattr(span_gpu.torch.cuda, "is_available", lambda: False)
    span_gpu.run()
    assert capsys.readouterr().out == "  left out: no CUDA device is here\n"
    monkeypatch.setattr(span_gpu, "ROUNDS", 1)
    monkeypatch.setattr(span_gpu, "EDGE", 8)
    span_gpu.compare("cpu", (60,), slides=2, patches=20)
    printed = capsys.readouterr().out
    assert "60 patches, bf16, attention alone: blocked" in printed
    assert "cannot run on 'flash': there is no CUDA device" in printed
    assert "60 patches, bf16, attention without dropout: reference" in printed
    assert "2 slides of 20, fp32:" in printed


def test_scans_on_a_gpu_are_left_out_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import scan_gpu

    monkeypatch.setattr(scan_gpu.torch.cuda, "is_available", lambda: False)
    scan_gpu.run()
    assert capsys.readouterr().out == "  left out: no CUDA device is here\n"
    monkeypatch.setattr(scan_gpu, "ROUNDS", 1)
    monkeypatch.setattr(scan_gpu, "BACKENDS", ("chunked", "numbat"))
    scan_gpu.compare("cpu", ((2, 9, 4),), (8, 8))
    printed = capsys.readouterr().out
    assert "2 x 9 steps, D = 4, bf16 (0 MB of states): chunked " in printed
    assert "MambaBlock(8), 8 tokens, fp32: No op has a backend 'numbat'" in printed


def test_the_training_loop_is_compared_with_bare_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wsizoo_plugin_span")
    pytest.importorskip("lightning_fabric")
    from benchmarks import training

    training.overhead("abmil-uni", 2, patches=30, rounds=1)
    monkeypatch.setattr(training, "THREADS", (0, 1))
    training.reading(tmp_path, count=2, patches=30)
    printed = capsys.readouterr().out
    assert "abmil-uni, an epoch of 2 slides of 30 patches, processor time" in printed
    assert "1 reading threads: " in printed
