"""Linear maps of many rows by the weights of layers that nobody watches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsizoo.ops import map_rows, observed


def linear(rows: Tensor, part: nn.Linear) -> Tensor:
    """part(rows): (N, D) of any float dtype -> (N, E) in that of the weights.

    Cost: a training step of longmil-uni at 10,000 patches takes a third less than by `nn.Linear`
    where oneDNN is the faster library; see `wsizoo.ops.products`.
    """
    if not fits(rows, part):
        plain: Tensor = part(rows.to(part.weight.dtype))
        return plain
    return map_rows(rows, part.weight, part.bias)


def fits(rows: Tensor, *parts: nn.Module) -> bool:
    """Whether weights may be read, not called: on a CPU, unless somebody looks at the parts.

    They must be what their names say, and nothing may hang on them.
    """
    exact = all(part.weight.dtype in (torch.float32, torch.float64) for part in parts)
    here = rows.device.type == "cpu" and rows.ndim == 2
    return exact and here and all(map(_is_plain, parts)) and not observed()


def _is_plain(part: nn.Module) -> bool:
    """Neither a subclass (LoRA, quantisation, parametrisation), nor hooked (pruning, GradCAM), nor
    with a `forward` of its own (accelerate)."""
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks
    changed = any(hooks) or bool(part._backward_pre_hooks) or "forward" in vars(part)
    return type(part) is nn.Linear and not changed
