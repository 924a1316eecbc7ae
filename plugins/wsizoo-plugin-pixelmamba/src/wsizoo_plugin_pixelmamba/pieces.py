"""A bidirectional Mamba block on a sequence that is too long to be worked on at once.

out = x + P(f(x)) + P(b(x)) with a branch f that runs forwards, b backwards, and P linear. So each
branch goes through the sequence piece by piece and adds what it gives; from piece to piece it hands
on the state of its scan, and reads the few tokens before a piece that its convolution sees. Only x
and the states at the borders of pieces are kept; the way back computes a piece again.
"""

# ruff: noqa: N803 (A, B, C, D as in the paper)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.mamba import VimBlock
from wsizoo.ops import causal_conv1d, selective_scan
from wsizoo.ops.memory import give_back

TINY = 2.0**-40  # a time step in which a state neither decays nor, but for what it is given, grows


def swept(x: Tensor, norm: nn.Module, block: VimBlock, piece: int) -> Tensor:
    """x + block(norm(x)) for one sequence (T, C), `piece` tokens at a time.

    Cost: as at once, but that both branches project in and out for themselves, and take softplus
    and gate beside the scan; in memory, beside x and the result, what one piece needs, and E N
    values a border.
    """
    parameters = [p for part in (norm, block) for p in part.parameters() if p.requires_grad]
    found: Tensor = _Swept.apply(x, _Sweep(norm, block, piece), *parameters)
    return found


def in_groups(function: Callable[[Tensor], Tensor], x: Tensor, together: int) -> Tensor:
    """A linear function of each region alone on (B, n, T, C), `together` regions at a time.

    As `torch.cat` of its parts, but that both ways write into memory that is made once: parts that
    wait for the others lie between what is freed, so that the C library cannot use it again.
    """
    found: Tensor = _InGroups.apply(x, function, together)
    return found


class _InGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], together: int) -> Tensor:
        ctx.shape, ctx.function, ctx.together = x.shape, function, together
        return _filled(function, x.split(together, 1), x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        def transposed(part: Tensor) -> Tensor:
            regions = part.shape[1]
            at = part.new_zeros(ctx.shape[0], regions, *ctx.shape[2:], requires_grad=True)
            with torch.enable_grad():
                y = ctx.function(at)
            return torch.autograd.grad(y, at, part)[0]

        return _filled(transposed, grad.split(ctx.together, 1), ctx.shape[1]), None, None


def _filled(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], n: int) -> Tensor:
    """What the function gives for all parts (B, some, ...), in one tensor (B, n, ...)."""
    out: Tensor | None = None
    at = 0
    for part in parts:
        found = function(part)
        out = found.new_empty(len(found), n, *found.shape[2:]) if out is None else out
        out[:, at : at + part.shape[1]] = found
        at += part.shape[1]
    assert out is not None
    return out


class _Sweep:
    """Both branches of one block, piece by piece."""

    def __init__(self, norm: nn.Module, block: VimBlock, piece: int) -> None:
        self.norm, self.block, self.piece = norm, block, piece
        ahead = (block.conv1d, block.x_proj, block.dt_proj, block.A_log, block.D)
        conv = block.conv1d if block.conv1d_b is None else block.conv1d_b
        back = (conv, block.x_proj_b, block.dt_proj_b, block.A_b_log, block.D_b)
        self.branches = (ahead, back)

    def pieces(self, length: int) -> list[tuple[bool, int, int, int]]:
        """Whether it runs backwards, first and last token, and how many before it are read.

        In the order in which they are run; positions count in the direction of the branch.
        """
        halo = self.block.conv1d.kernel_size[0] - 1
        return [
            (reverse, start, min(start + self.piece, length), min(halo, start))
            for reverse in (False, True)
            for start in range(0, length, self.piece)
        ]

    def initial(self) -> Tensor:
        """(E, N), the state before the first piece."""
        like = self.block.A_log
        return like.new_zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32))

    def run(self, x: Tensor, state: Tensor, halo: int, reverse: bool) -> tuple[Tensor, Tensor]:
        """What a branch adds to the P tokens of a piece (P, C), and the state after it.

        Args:
            x: (halo + P, C), the residual stream in the direction of the branch.
            state: (E, N), before the piece.
        """
        conv, x_proj, dt_proj, a_log, d = self.branches[reverse]
        inner, gate = self.block.in_proj(self.norm(x)).chunk(2, -1)
        u = causal_conv1d(inner, conv.weight[:, 0], conv.bias)[halo:]  # (P, E)
        n = a_log.shape[1]
        dt, b, c = x_proj(u).split([dt_proj.in_features, n, n], -1)
        delta = F.softplus(F.linear(dt, dt_proj.weight).to(state.dtype) + dt_proj.bias)
        a = -torch.exp(a_log.to(state.dtype))
        y, state = scan_from(state, u, delta, a, b, c, d)
        y = y.to(gate.dtype) * F.silu(gate[halo:])
        out: Tensor = self.block.out_proj(y / 2 if self.block.divide_out else y)
        return (out if self.block.gamma is None else out * self.block.gamma), state


def scan_from(
    state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective_scan` from a state on, and the state after it, both with gradients.

    The state comes in as N steps before the first, one a state, that write it; it goes out as N
    after the last that read it. A time step of 0 changes nothing, one of 2^-40 only adds.

    Args:
        state: (E, N) float32 or wider. delta: (P, E), after softplus. Others: see the op.
    """
    n = state.shape[1]
    wide = state.dtype
    one, none = torch.eye(n, dtype=wide, device=u.device), state.new_zeros(n, n)
    silent = state.new_zeros(n, len(state))  # (N, E)
    y, _ = selective_scan(
        torch.cat([state.T / TINY, u.to(wide), silent]),
        torch.cat([silent + TINY, delta, silent]),
        A,
        torch.cat([one, B.to(wide), none]),
        torch.cat([none, C.to(wide), one]),
        D.to(wide),
    )
    return y[n:-n], y[-n:].T.clone()  # a view of y would keep all of it


class _Swept(torch.autograd.Function):
    """See the module. The parameters are arguments so that they are given gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sweep: _Sweep, *parameters: Tensor) -> Tensor:
        give_back()
        out, states, state = x.clone(), [], sweep.initial()
        for reverse, start, end, halo in sweep.pieces(len(x)):
            states.append(state if start else sweep.initial())
            given = _turned(x[_place(x, start - halo, end, reverse)], reverse)
            added, state = sweep.run(given, states[-1], halo, reverse)
            out[_place(x, start, end, reverse)] += _turned(added, reverse)
        ctx.save_for_backward(x, *states)
        ctx.sweep, ctx.parameters, ctx.casting = sweep, parameters, _casting(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        give_back()
        x, *states = ctx.saved_tensors
        grad_x, grads = grad.clone(), [torch.zeros_like(p) for p in ctx.parameters]
        pieces = ctx.sweep.pieces(len(x))
        for (reverse, start, end, halo), state in reversed(list(zip(pieces, states, strict=True))):
            if end == len(x):
                grad_state = torch.zeros_like(state)  # nobody reads the last state
            seen = _place(x, start - halo, end, reverse)
            given = _turned(x[seen], reverse).detach().requires_grad_()
            before = state.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(x.device.type, **ctx.casting):
                added, after = ctx.sweep.run(given, before, halo, reverse)
            wanted = _turned(grad[_place(x, start, end, reverse)], reverse).to(added.dtype)
            found = torch.autograd.grad(
                (added, after),
                (given, before, *ctx.parameters),
                (wanted, grad_state),
                allow_unused=True,  # the parameters of the other branch
            )
            grad_x[seen] += _turned(found[0], reverse)
            grad_state = found[1]
            for own, more in zip(grads, found[2:], strict=True):
                if more is not None:
                    own.add_(more)
        return grad_x, None, *grads


def _place(x: Tensor, start: int, end: int, reverse: bool) -> slice:
    """Where tokens start to end lie, counted from the last one if `reverse`."""
    return slice(len(x) - end, len(x) - start) if reverse else slice(start, end)


def _turned(x: Tensor, reverse: bool) -> Tensor:
    return x.flip(0) if reverse else x


def _casting(x: Tensor) -> dict[str, Any]:
    """The state of autocast, for the way back."""
    kind = x.device.type
    on = torch.is_autocast_enabled(kind)
    return {"enabled": on, "dtype": torch.get_autocast_dtype(kind)}
