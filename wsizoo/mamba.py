"""Blocks of selective state spaces: Mamba's, and that of Vision Mamba, which runs both ways."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import causal_conv1d, selective_scan

DT_RANGE, DT_FLOOR = (1e-3, 1e-1), 1e-4  # of dt at initialisation
UNDECAYED = ("A_log", "D", "A_b_log", "D_b")


class MambaBlock(nn.Module):
    """The Mamba-1 block over packed sequences: no norm and no residual, those are the caller's.

    Args:
        dim: width C of a token. d_state: states N of a channel. d_conv: steps W that the
            convolution sees. expand: inner width E over C. dt_rank: default ceil(C / 16).

    `forward` is `out_proj(branch(*project_in(x)))`; who scans one set of tokens in several
    orders projects them once.

    Cost: T E (3 C + 2 R + 2 N + W) multiply-adds, T E N updates of a state.
    Source: Gu and Dao 2023 (https://arxiv.org/abs/2312.00752), Figure 3; parameters and
    initialisation as `Mamba` of https://github.com/state-spaces/mamba at e9594ce.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, dt_rank or math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = _conv(inner, d_conv)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = _dt_proj(rank, inner)
        self.A_log = _a_log(inner, d_state)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, offsets: Tensor | None = None, reverse: bool = False) -> Tensor:
        """Tokens (T, C) -> (T, C).

        Args:
            offsets: (S+1,) int64 of the sequences, None: one. reverse: from each one's last token.
        """
        inner, gate = self.project_in(x)
        out: Tensor = self.out_proj(self.branch(inner, gate, offsets, reverse))
        return out

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (T, C) -> what is scanned, and the gate, (T, E) each."""
        inner, gate = self.in_proj(x).chunk(2, -1)
        return inner, gate

    def branch(
        self, inner: Tensor, gate: Tensor, offsets: Tensor | None = None, reverse: bool = False
    ) -> Tensor:
        """Convolution, scan and gate, (T, E) -> (T, E)."""
        own = (self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        return _branch(inner, gate, *own, offsets, reverse)


class VimBlock(nn.Module):
    """The bidirectional block of Vision Mamba, version 2: one projection in, a branch each way.

    Args:
        dim, d_state, d_conv, expand, dt_rank: as `MambaBlock`.
        divide_out: the mean of both branches rather than their sum; published Vim models have it.
        layer_scale: start of a learned factor a channel on the result; None: no such factor.
        share_conv: both branches use `conv1d`, and there is no `conv1d_b`.
        vim_init: `dt_proj_b.bias` starts at 0, as in Vim, where a general pass resets it; else as
            the forward branch's.

    Source: Zhu et al. 2024 (https://arxiv.org/abs/2401.09417), Algorithm 1; parameters as `Mamba`
    with bimamba_type="v2" of https://github.com/hustvl/Vim at dd0358a (its name `A_b_log` too).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        divide_out: bool = False,
        layer_scale: float | None = None,
        share_conv: bool = False,
        vim_init: bool = False,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, dt_rank or math.ceil(dim / 16)
        self.divide_out = divide_out
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = _conv(inner, d_conv)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = _dt_proj(rank, inner)
        self.A_log = _a_log(inner, d_state)
        self.D = nn.Parameter(torch.ones(inner))
        self.conv1d_b = None if share_conv else _conv(inner, d_conv)
        self.x_proj_b = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj_b = _dt_proj(rank, inner)
        if vim_init:
            nn.init.zeros_(self.dt_proj_b.bias)
        self.A_b_log = _a_log(inner, d_state)
        self.D_b = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        scale = None if layer_scale is None else torch.full((dim,), float(layer_scale))
        self.gamma = None if scale is None else nn.Parameter(scale)

    def forward(self, x: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Tokens (T, C) -> (T, C); offsets (S+1,) int64 of the sequences, None: one."""
        inner, gate = self.in_proj(x).chunk(2, -1)
        ahead = (self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        conv = self.conv1d if self.conv1d_b is None else self.conv1d_b
        back = (conv, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        y = _branch(inner, gate, *ahead, offsets, False)
        y = y + _branch(inner, gate, *back, offsets, True)
        out: Tensor = self.out_proj(y / 2 if self.divide_out else y)
        return out if self.gamma is None else out * self.gamma


def param_groups(
    part: nn.Module, base_lr: float, undecayed: Iterable[Tensor] = ()
) -> list[dict[str, Any]]:
    """Optimiser groups of a part with such blocks: their A and D have no weight decay.

    Args:
        undecayed: further parameters without it.

    Source: `_no_weight_decay` of https://github.com/state-spaces/mamba at e9594ce.
    """
    blocks = [block for block in part.modules() if isinstance(block, MambaBlock | VimBlock)]
    spared = {id(p) for block in blocks for n, p in block.named_parameters() if n in UNDECAYED}
    spared |= set(map(id, undecayed))
    trained = [p for p in part.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in spared], "lr": base_lr},
        {"params": [p for p in trained if id(p) in spared], "lr": base_lr, "weight_decay": 0.0},
    ]


def _branch(
    inner: Tensor,
    gate: Tensor,
    conv: nn.Conv1d,
    x_proj: nn.Linear,
    dt_proj: nn.Linear,
    a_log: Tensor,
    d: Tensor,
    offsets: Tensor | None,
    reverse: bool,
) -> Tensor:
    x = causal_conv1d(inner, conv.weight[:, 0], conv.bias, "silu", offsets, reverse)
    states = a_log.shape[1]
    dt, b, c = x_proj(x).split([dt_proj.in_features, states, states], -1)
    delta = F.linear(dt, dt_proj.weight)  # its bias is added in the scan
    a = -torch.exp(a_log.to(torch.promote_types(a_log.dtype, torch.float32)))
    y, _ = selective_scan(x, delta, a, b, c, d, gate, dt_proj.bias, True, offsets, reverse)
    found: Tensor = y
    return found


def _conv(inner: int, width: int) -> nn.Conv1d:
    """Holds the weights (E, 1, W) under their published names; `causal_conv1d` computes."""
    return nn.Conv1d(inner, inner, width, groups=inner, padding=width - 1)


def _dt_proj(rank: int, inner: int) -> nn.Linear:
    """R -> E, whose bias gives a dt that is log-uniform in `DT_RANGE` after softplus."""
    made = nn.Linear(rank, inner)
    nn.init.uniform_(made.weight, -(rank**-0.5), rank**-0.5)
    low, high = (math.log(end) for end in DT_RANGE)
    dt = torch.exp(torch.rand(inner) * (high - low) + low).clamp(min=DT_FLOOR)
    with torch.no_grad():
        made.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
    return made


def _a_log(inner: int, states: int) -> nn.Parameter:
    """(E, N), log(1 .. N) in each row."""
    return nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(inner, 1))
