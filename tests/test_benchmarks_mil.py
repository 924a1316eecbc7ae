import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import mil

pytest.importorskip("wsizoo_plugin_mil")
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture(autouse=True)
def as_many_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@linux
def test_every_method_is_measured_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "N": 60,
        "TIMED": {"rounds": 1},
        "BAGS": 2,
        "PATCHES": 20,
        "FEWER": (5,),
        "WARM": 20,
        "DIM": 64,
        "THREADS": 1,  # two that wait for one another on a busy machine take most of the time
    }
    for name, value in small.items():
        monkeypatch.setattr(mil, name, value)
    monkeypatch.setattr(mil, "_fresh", lambda what, name: mil.measured(name, mil.N))
    matmuls: list[str] = []
    monkeypatch.setattr(mil.abmil, "run", lambda: matmuls.append("run"))
    monkeypatch.setattr(mil, "find_spec", lambda name: None)
    monkeypatch.setattr(mil, "methods", lambda: ["abmil", "transmil", "gcn"])
    mil.run()
    printed = capsys.readouterr().out
    assert "gcn: " in printed
    assert "transmil: " in printed
    assert "(goal 60% of torch.matmul's rate)" in printed
    assert matmuls == ["run"]
    assert "clam-mb, 2 bags of 20 in one pass" in printed
    assert "clam-mb, 2 bags of 5, its products alone" in printed
    assert "abmil beside torchmil: left out: torchmil is not here, see CONTRIBUTING.md" in printed


def test_all_aggregators_of_the_plugin_are_found_and_train_a_step() -> None:
    names = mil.methods()
    assert {"abmil", "clam-sb", "dsmil", "transmil", "gcn", "gat"} < set(names)
    for name in names:
        assert mil.wsizoo.show(mil.entry_of(name))["aggregator"]["name"] == name
    assert mil.entry_of("abmil") == "abmil-uni"
    for name in ("mean", "gat"):
        model, bag = mil.begun(name, 30)
        mil.step_of(model, bag)()
        assert all(p.grad is not None for p in model.parameters())


def forward_of(name: str, n: int) -> float:
    model, bag = mil.model_of(name).eval(), mil.slide(n)
    with torch.no_grad():
        return mil.multiply_adds(lambda: model(bag))


def test_multiply_adds_of_a_forward_pass_are_those_of_the_formulas() -> None:
    n, e = 1023, 512
    assert forward_of("abmil", n) == pytest.approx(n * (1024 * e + 2 * e * 384 + 384 + e), rel=1e-2)
    padded, m = 1280, 256  # 32 x 32 + 1 tokens, filled up to a multiple of landmarks
    layer = 4 * padded * e * e + 4 * padded * m * e + 24 * 8 * m**3 + m * m * e + 33 * padded * e
    whole = n * 1024 * e + 2 * layer + 49 * e * 1024
    assert forward_of("transmil", n) == pytest.approx(whole, rel=2e-2)


def test_a_backward_pass_is_counted() -> None:
    model, bag = mil.begun("transmil", 500)
    whole = mil.multiply_adds(mil.step_of(model, bag))
    assert 2.8 < whole / forward_of("transmil", 500) < 3


@linux
def test_torchmil_is_compared_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Theirs(nn.Module):
        def __init__(self, shape: tuple[int, ...], **options: object) -> None:
            super().__init__()
            self.linear = nn.Linear(*shape, 1)

        def compute_loss(self, label: torch.Tensor, x: torch.Tensor) -> tuple[None, dict]:
            return None, {"loss": (self.linear(x).mean() - label).square().sum()}

    package = ModuleType("torchmil.models")
    package.ABMIL = package.TransMIL = Theirs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmil.models", package)
    monkeypatch.setattr(mil, "find_spec", lambda name: SimpleNamespace())
    for name, value in {"N": 60, "TIMED": {"rounds": 1}, "WARM": 20}.items():
        monkeypatch.setattr(mil, name, value)
    called = {"memory": False, "their-memory": True}
    monkeypatch.setattr(
        mil, "_fresh", lambda what, name: {"extra": mil.memory(name, 60, called[what])["extra"] + 1}
    )
    mil.side_by_side("abmil")
    printed = capsys.readouterr().out
    assert "as fast as torchmil" in printed
    assert "goal at most 0.5" in printed
