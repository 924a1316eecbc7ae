"""Lookahead: slow weights that follow an optimiser's fast ones, every few steps half of the way."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

HALF = 0.5  # of the way; alpha
COUNT, SLOW = "lookahead_steps", "slow"  # in a group; of a parameter


def with_lookahead(kind: type[Optimizer], every: int) -> type[Optimizer]:
    """An optimiser whose weights go back, every so many steps, to the middle of old and new ones.

    The slow weights begin as the fast ones are after the first `every` steps, and are part of the
    optimiser's state, so that a resume goes on.

    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019,
    https://arxiv.org/abs/1907.08610, with alpha 0.5; the beginning as timm has it.
    """

    class Lookahead(kind):  # type: ignore[misc,valid-type]
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for group in self.param_groups:
                group[COUNT] = group.get(COUNT, 0) + 1
                if group[COUNT] % every == 0:
                    for parameter in group["params"]:
                        meet(parameter, self.state[parameter])
            return loss

    return Lookahead


@torch.no_grad()
def meet(parameter: torch.Tensor, state: dict[str, Any]) -> None:
    """Slow weights move towards the fast, and the fast begin anew from there."""
    if SLOW not in state:
        state[SLOW] = parameter.detach().clone()
    else:
        state[SLOW].lerp_(parameter, HALF)
        parameter.copy_(state[SLOW])
