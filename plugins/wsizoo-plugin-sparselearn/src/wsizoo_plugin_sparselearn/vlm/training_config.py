"""How a SlideVLM is trained on conversations: the keys of a stage, checked before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from wsizoo.errors import SpecError
from wsizoo.hookspecs import KINDS
from wsizoo.overrides import lay_over
from wsizoo.structured import structured
from wsizoo.yaml_data import read_yaml

FOLDER = Path(__file__).parent / "configs"
STAGES = ("align", "instruct")
CHANGE_NO_NUMBER = frozenset({"log_steps", "state_steps", "device"})
WHOSE = "training"


@dataclass
class Training:
    """One stage; every key of `configs/STAGE.yaml`.

    Args:
        stage: "align": the language model is frozen. "instruct": it gets LoRA (`model.lora={...}`;
            `model.lora=null` leaves it frozen), which learns at ten times `lr`.
        start: a registry entry, with random weights, or the folder of a model: of the stage before.
        selector_from: a model or run whose trained selector, the same one, the selector begins as:
            one that learned before an aggregator. null: as `start` has it.
        selection: "soft": the selector learns, as it says itself (all patches pass, up to
            `model.train_limit`). "hard": it stays as it is, and its K patches pass.
        epochs, batch_size: conversations of one step; each is shown alone, gradients add up.
        lr: at its highest, then down to 0 by half a cosine. warmup: share of steps up to it.
        weight_decay, betas: of AdamW. clip: the gradients' norm at most.
        log_steps, state_steps: steps after which progress is told, and all is kept to go on from.
        device: auto, cpu, cuda, cuda:0; under torchrun each process has the GPU of its rank.
    """

    stage: str
    start: str
    selector_from: str | None
    selection: str
    epochs: int
    batch_size: int
    lr: float
    warmup: float
    weight_decay: float
    betas: list[float]
    clip: float
    seed: int
    log_steps: int
    state_steps: int
    device: str

    def __post_init__(self) -> None:
        """Raises SpecError: a value that a key cannot have."""
        for name, values in (("stage", STAGES), ("selection", ("soft", "hard"))):
            if getattr(self, name) not in values:
                _refuse(name, getattr(self, name), " or ".join(values))
        for name in ("epochs", "batch_size", "log_steps", "state_steps"):
            if getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "1 or more")
        for name in ("lr", "weight_decay", "clip", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                _refuse(name, getattr(self, name), "0 or more")
        if not 0 <= self.warmup < 1:
            _refuse("warmup", self.warmup, "a share from 0 to below 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            _refuse("betas", self.betas, "two numbers from 0 to below 1")

    def rate(self, done: float) -> float:
        """Share of the highest learning rate after this share of all steps."""
        if done < self.warmup:
            return done / self.warmup
        return (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2

    def numbers(self) -> dict[str, Any]:
        """The keys that the trained numbers depend on."""
        return {k: v for k, v in asdict(self).items() if k not in CHANGE_NO_NUMBER}


def read_config(texts: Sequence[str] = ()) -> tuple[Training, list[str]]:
    """A stage and what is laid over its model.

    Args:
        texts: KEY=VALUE, `stage=align` among them unless it is that; those that begin with `model`,
            or another part of an entry, are overrides of the model.

    Raises:
        SpecError: an unknown key, a wrong type, a value that cannot be.
    """
    of_model = [text for text in texts if text.partition("=")[0].partition(".")[0] in KINDS]
    content: dict[str, Any] = {}
    for text in texts:
        if text not in of_model:
            lay_over(WHOSE, content, text)
    stage = content.get("stage", STAGES[0])
    if stage not in STAGES:
        _refuse("stage", stage, " or ".join(STAGES))
    base = read_yaml((FOLDER / f"{stage}.yaml").read_text(encoding="utf-8"))
    return structured(Training, WHOSE, {**base, **content}, typed=True), of_model


def _refuse(name: str, value: Any, need: str) -> NoReturn:
    raise SpecError(f"{WHOSE}: {name} is {value}, expected {need}")
