"""The needles and the costs at tiny sizes: the task is what it says, and all is reported."""

import numpy as np
import pytest
import torch

pytest.importorskip("wsizoo_plugin_sparselearn")
pytest.importorskip("wsizoo_plugin_span")

from benchmarks import _needles, sparselearn
from benchmarks._needles import Found, Size

TINY = Size(n=400, k=16, reader=2, selector=2, tests=3, monitors=2)


def test_a_bag_is_always_the_same_and_holds_what_the_task_says() -> None:
    bag, needles = _needles.make_bag(_needles.TEST, 3, 4096)
    again, _ = _needles.make_bag(_needles.TEST, 3, 4096)
    other, _ = _needles.make_bag(_needles.TRAIN, 3, 4096)
    assert torch.equal(bag.features, again.features)
    assert not torch.equal(bag.features, other.features)
    along = bag.features @ torch.from_numpy(_needles.directions()).T  # (N, 64)
    kinds = along[needles, 1:5].argmax(1)
    assert kinds.bincount(minlength=4).max() == 5
    assert int(kinds.mode().values) == bag.target["label"]
    assert float(along[needles, 0].mean()) == pytest.approx(4, abs=1)
    assert int((along[:, 5] > 3).sum()) == pytest.approx(128, abs=3)
    loud = torch.linalg.vector_norm(bag.features, dim=1).topk(100).indices
    assert float((along[loud, 5] > 3).double().mean()) > 0.9
    assert np.allclose(_needles.directions() @ _needles.directions().T, np.eye(64), atol=1e-5)


def test_the_needles_alone_tell_the_class_and_random_patches_do_not() -> None:
    """A reader that knows where to look, since training one takes minutes."""
    reader = _needles.Pooling()
    q = torch.from_numpy(_needles.directions())
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.zero_()
        reader.norm.weight.fill_(1)
        reader.value.weight[0], reader.value.bias[0] = q[0] + q[1:5].sum(0) - 2 * q[5], -7.0
        reader.gate.bias.fill_(20)
        reader.score.weight[0, 0] = 20
        reader.classify.weight.copy_(q[1:5])
    size = Size(tests=8)
    full, oracle = _needles.read_whole(reader.eval(), size)
    assert np.mean(full.hard) > 0.8 and np.mean(oracle.hard) == 1
    chosen = _needles.tried(_needles.attention_of(reader, size), reader, size)
    assert np.mean(chosen.recall) > 0.7 and np.mean(chosen.hard) > 0.8
    blind = _needles.tried(_needles.Norm(64, 32).eval(), reader, size)
    assert np.mean(blind.recall) < 0.1


def test_every_selector_is_trained_tried_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    sparselearn.needles([0, 1], TINY)
    printed = capsys.readouterr().out
    assert "chosen with seed 9: sparselearn 0.0" in printed
    for name in (*_needles.LEARNED, *_needles.UNTRAINED, "abmil-score", "full bag", "the needles"):
        assert f"  | {name} | " in printed
    assert "sparselearn minus random: hard " in printed


def test_the_same_seed_gives_the_same_run() -> None:
    rates = dict.fromkeys(_needles.LEARNED, 3e-3)
    assert _needles.run_of(3, rates, TINY) == _needles.run_of(3, rates, TINY)


def test_a_difference_is_over_bags_that_runs_share() -> None:
    ours, theirs = [[1.0, 1, 1, 1]] * 2, [[1.0, 0, 1, 0]] * 2
    assert sparselearn.differ(ours, theirs).startswith("+50.0 (+0.0 to +100.0")
    assert sparselearn.per_seed([Found(hard=[1, 0]), Found(hard=[1, 1])], "hard") == (
        "0.500 / 1.000 (mean 0.750)"
    )
    assert sparselearn.per_seed([Found()], "soft") == "-"


def test_costs_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ROWS": 300, "TEMPERATURES": (0.5,), "KEPT": (8,)}.items():
        monkeypatch.setattr(sparselearn, name, value)
    monkeypatch.setattr(sparselearn, "AFTER", (("span-mil-uni", (60,)),))
    threads = torch.get_num_threads()
    try:
        sparselearn.cost()
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "soft_topk, laplace, temperature 0.5, both ways, 300 rows" in printed
    assert "selector in eval, 300 x 1024, h = 256" in printed and "goal at most 1.2" in printed
    assert "| span-mil-uni | 60 | 8 | 8 |" in printed
