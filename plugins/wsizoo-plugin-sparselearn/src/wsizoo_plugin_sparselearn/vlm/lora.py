"""LoRA on a language model, through peft."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from wsizoo.errors import SpecError
from wsizoo_plugin_sparselearn.vlm.language_model import library

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Lora:
    """How a language model is adapted.

    Args:
        r, alpha, dropout: rank, scale alpha / r, dropout of what enters; LLaVA's.
        targets: names of the layers; as Llama, Qwen and Mistral call them.
    """

    r: int = 64
    alpha: float = 16.0
    dropout: float = 0.05
    targets: list[str] = field(default_factory=lambda: list(TARGETS))

    def __post_init__(self) -> None:
        """Raises SpecError: a rank below 1, no targets."""
        if self.r < 1 or not self.targets:
            raise SpecError(
                f"slidevlm: lora has r={self.r} and targets={self.targets}, expected a rank of 1 "
                "or more and names of layers"
            )


def adapted(lm: Any, lora: Lora) -> Any:
    """The language model with new LoRA weights, which alone take gradients.

    Raises:
        SpecError: it has no such layers.
    """
    peft = library("peft")
    told = asdict(lora)
    names = {name.rpartition(".")[2] for name, _ in lm.named_modules()}
    if lacking := [name for name in lora.targets if name not in names]:
        raise SpecError(
            f"slidevlm: lora.targets names {', '.join(lacking)}, which a "
            f"{type(lm).__name__} does not have. Name some of its layers: "
            "model.lora.targets=[c_attn]"
        )
    config = peft.LoraConfig(
        r=told["r"],
        lora_alpha=told["alpha"],
        lora_dropout=told["dropout"],
        target_modules=told["targets"],
        fan_in_fan_out=lm.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft asks transformers by names that it means to retire
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(lm, config)


def lora_state(lm: Any) -> dict[str, Tensor]:
    """The LoRA weights by the names that peft saves them under; the module's own tensors."""
    peft = library("peft")
    found: dict[str, Tensor] = peft.get_peft_model_state_dict(lm, save_embedding_layers=False)
    return found
