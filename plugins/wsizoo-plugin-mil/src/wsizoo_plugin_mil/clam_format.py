"""Weight format "clam-official": what CLAM saves, of all its versions, as one of our models."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from wsizoo import SlideModel
from wsizoo.errors import StrictnessError
from wsizoo_plugin_mil.clam import ClamSB
from wsizoo_plugin_mil.renaming import Renaming, told, width

OLDER = (  # names before April 2024, and those of today
    (r"^attention_net\.module\.", "attention_net."),  # DataParallel around this part alone
    (r"^attention_net\.2\.", "attention_net.3."),  # trained without dropout, which took a place
    (r"^attention_net\.3\.module\.2\.", "attention_net.3.module.3."),
)


class ClamOfficial(Renaming):
    """As https://github.com/mahmoodlab/CLAM at 53e2409 saves CLAM-SB and CLAM-MB.

    Older files are read too: those with the prefix of DataParallel on the attention alone, and
    those without dropout.
    """

    whose = "CLAM"

    def names(self, model: SlideModel) -> dict[str, str]:
        return {
            "aggregator.embed.0": "attention_net.0",
            **scores(
                "aggregator.attention", "attention_net.3", _of(model).attention.gate is not None
            ),
            "aggregator.classify": "classifiers",
            "aggregator.judge": "instance_classifiers",
        }

    def stacks(self, model: SlideModel) -> dict[str, int]:
        own = {} if _of(model).one_row else {"aggregator.classify": 1}
        return {"aggregator.judge": 2, **own}

    def made_up(self, model: SlideModel) -> dict[str, Tensor]:
        return {"instance_loss_fn.labels": torch.arange(2)}

    def up_to_date(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        found = dict(tensors)
        for old, new in OLDER:
            found = {re.sub(old, new, name): tensor for name, tensor in found.items()}
        rows = width(found, "attention_net.3.attention_c.weight", 0)
        if not _of(model).one_row and "classifiers.weight" in found and rows != 1:
            raise StrictnessError(
                "This file has several rows of attention and one classifier for them all: it is of "
                "CLAM between commits d613a3d and 08bc929 of 2024, whose CLAM-MB no other version "
                "computes. Train it again with one of them"
            )
        return found

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        gated = "attention_net.3.attention_a.0.weight" in tensors
        hidden = f"attention_net.3.{'attention_a' if gated else 'module'}.0.weight"
        return told(
            encoder__dim=width(tensors, "attention_net.0.weight", 1),
            aggregator__dim=width(tensors, "attention_net.0.weight", 0),
            aggregator__attention=width(tensors, hidden, 0),
            aggregator__gated=gated if "attention_net.0.weight" in tensors else None,
            aggregator="clam-mb" if "classifiers.0.weight" in tensors else "clam-sb",
        )


def scores(ours: str, theirs: str, gated: bool, last: int = 3) -> dict[str, str]:
    """Names of an attention network, as CLAM and MIL-Lab call its layers.

    Args:
        last: place of the last layer in the plain one, which dropout moves.
    """
    if gated:
        layers = {"value": "attention_a.0", "gate": "attention_b.0", "score": "attention_c"}
    else:
        layers = {"value": "module.0", "score": f"module.{last}"}
    return {f"{ours}.{own}": f"{theirs}.{their}" for own, their in layers.items()}


def _of(model: SlideModel) -> ClamSB:
    assert isinstance(model.aggregator, ClamSB)
    return model.aggregator
