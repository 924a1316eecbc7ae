import pytest
import torch

from benchmarks import longmil


def test_layers_and_memory_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(longmil, "LOCAL", {300: 12.0})
    monkeypatch.setattr(longmil, "GLOBAL", (200,))
    monkeypatch.setattr(longmil, "MEMORY", (100,))
    monkeypatch.setattr(longmil, "EDGE", 256)
    monkeypatch.setattr(longmil, "_fresh", lambda what, n: 1000.0 * n)
    try:
        longmil.run()
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "local layer, 300 patches in blobs" in printed
    assert "goal at least 12" in printed
    assert "global layer with ALiBi, 200 tokens" in printed
    assert "at 100: 1000 bytes a patch" in printed
    assert "a training step at 50000: 0.05 GB in all, goal 6" in printed


def test_both_layers_compute_what_they_are_compared_with() -> None:
    cells = longmil.blobs(200)
    everything = longmil.Disk(cells, 1000)
    q, k, v, _ = (x.detach() for x in longmil._inputs(200))
    mine = longmil.grid_attention(q, k, v, everything)
    plain = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v))
    )
    assert torch.allclose(mine, plain.transpose(0, 1), atol=1e-5)
    assert longmil._pairs(cells) == int(longmil.Disk(cells, 10).dense().sum())


def test_a_step_is_measured_by_its_process() -> None:
    assert longmil._peak_bytes() > 1e8
    assert longmil._gain(300) >= 0
