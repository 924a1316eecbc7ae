import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toy_training import SETTINGS, ToySlides, train_toy
from wsizoo.errors import NotFoundError
from wsizoo.train.logs import line_of, write_logs

ROW = {"epoch": 1, "lr": 1e-4, "train_loss": 0.5, "val_auc": 0.75, "seconds": 2.0, "waited": 0.1}


def test_the_table_holds_no_times_and_the_log_does(tmp_path: Path) -> None:
    write_logs(tmp_path, [ROW, {**ROW, "epoch": 2, "val_auc": float("nan"), "val_f1": 1.0}])
    assert (tmp_path / "epochs.csv").read_text() == (
        "epoch,lr,train_loss,val_auc,val_f1\n1,0.0001,0.5,0.75,\n2,0.0001,0.5,,1.0\n"
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0] == {**ROW, "val_f1": None}
    assert lines[1]["val_auc"] is None


def test_an_epoch_is_a_line() -> None:
    told = "epoch 1/30  lr 0.0001  train_loss 0.5000  val_auc 0.7500  2.0 s"
    assert line_of(ROW, 30) == told


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    slides = ToySlides(2)
    told = rf"train\.loggers names {name}, which is not .*install {name}, or .* train\.loggers=\[\]"
    with pytest.raises(NotFoundError, match=told):
        train_toy(tmp_path, slides, settings=replace(SETTINGS, loggers=(name,)))
    assert slides.read == []


class Double(types.ModuleType):
    """Stands for both libraries, and keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("double")
        self.told: list[tuple[Any, ...]] = []
        self.util = types.SimpleNamespace(generate_id=lambda: "id-1")

    def SummaryWriter(self, folder: str, purge_step: int) -> Any:
        self.told.append(("open", folder, purge_step))
        return self

    def add_scalar(self, *args: Any) -> None:
        self.told.append(args)

    def flush(self) -> None: ...

    def close(self) -> None:
        self.told.append(("close",))

    def init(self, **options: Any) -> Any:
        self.told.append(("init", options))
        return self

    def log(self, row: dict[str, float], step: int) -> None:
        self.told.append((step, row))

    def finish(self) -> None:
        self.told.append(("finish",))


def test_tensorboard_gets_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double = Double()
    monkeypatch.setitem(sys.modules, "tensorboard", double)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", double)
    settings = replace(SETTINGS, epochs=2, loggers=("tensorboard",))
    trained = train_toy(tmp_path, ToySlides(2), settings=settings)
    assert double.told[0] == ("open", str(tmp_path / "tensorboard"), 1)
    assert ("val_loss", trained.history[1]["val_loss"], 2) in double.told
    assert double.told[-1] == ("close",)


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, epochs=2, loggers=("wandb",))
    for _ in range(2):
        double = Double()
        monkeypatch.setitem(sys.modules, "wandb", double)
        trained = train_toy(tmp_path, ToySlides(2), settings=settings)
        options = {"dir": str(tmp_path), "id": "id-1", "resume": "allow"}
        assert double.told[0] == ("init", options)
        assert double.told[-1] == ("finish",)
    double = Double()
    monkeypatch.setitem(sys.modules, "wandb", double)
    train_toy(tmp_path / "other", ToySlides(2), settings=settings)
    assert double.told[2][0] == 2 and double.told[2][1]["train_loss"] > 0
    assert trained.history[0]["epoch"] == 1
