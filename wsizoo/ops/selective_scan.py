"""The recurrence of Mamba over packed sequences, forwards or backwards."""

# ruff: noqa: N803 (A, B, C, D as in the paper)

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops._dispatch import op


@op
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """A linear recurrence of N states a channel, whose coefficients depend on the step.

    dt = softplus(delta + delta_bias); state = exp(dt A) state + dt u B, from 0 on;
    y = (C . state + D u) silu(z)

    Args:
        u, delta, z: (T, E), steps of all sequences one after another. z None: no gate.
        A: (E, N), negative. B, C: (T, N). D: (E,). delta_bias: (E,).
        delta_softplus: without it dt = delta + delta_bias.
        offsets: (S+1,) int64, sequence s has rows offsets[s]:offsets[s+1]; None: one sequence.
        reverse: walk each sequence from its last row to its first, as if it were flipped.

    Returns:
        y (T, E), in the dtype of u, and the states after the last step of the walk (S, E, N), in
        float32 at least and without a gradient; 0 for an empty sequence.

    Raises:
        DataError: shapes that do not fit together, offsets that are not those of T rows.

    Cost: T E N updates; the reference takes them step by step and keeps all states for backward,
    backends compute them again.
    Source: Gu and Dao 2023 (https://arxiv.org/abs/2312.00752), Algorithm 2; `selective_scan_ref` of
    https://github.com/state-spaces/mamba at e9594ce.
    Differs: theirs has (B, E, L) and sequences of one length; rows are what linear layers give.
    """
    bounds = check_scan(u, delta, A, B, C, D, z, delta_bias, offsets)
    wide = torch.promote_types(u.dtype, torch.float32)
    x, dt, A, B, C = (part.to(wide) for part in (u, delta, A, B, C))
    dt = dt if delta_bias is None else dt + delta_bias.to(wide)
    dt = F.softplus(dt) if delta_softplus else dt
    steps, states = [x.new_zeros(x.shape[1])] * len(x), []
    dts, xs, Bs, Cs = (part.unbind(0) for part in (dt, x, B, C))  # not by t: that is quadratic back
    for start, end in itertools.pairwise(bounds):
        state = x.new_zeros(A.shape)  # (E, N)
        rows = range(start, end)
        for t in reversed(rows) if reverse else rows:
            state = torch.exp(dts[t][:, None] * A) * state + (dts[t] * xs[t])[:, None] * Bs[t]
            steps[t] = (state * Cs[t]).sum(-1)  # (E,)
        states.append(state.detach())
    y = torch.stack(steps) if steps else x * 0.0  # (T, E)
    y = y if D is None else y + D.to(wide) * x
    y = y if z is None else y * F.silu(z.to(wide))
    return y.to(u.dtype), torch.stack(states) if states else x.new_zeros(0, *A.shape)


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    offsets: Tensor | None,
) -> list[int]:
    """The bounds of the sequences; raise DataError unless `selective_scan`'s arguments fit."""
    if u.ndim != 2 or A.ndim != 2:
        raise DataError(
            f"selective_scan got u {tuple(u.shape)} and A {tuple(A.shape)}, expected (rows, "
            "channels) and (channels, states)"
        )
    (t, e), n = u.shape, A.shape[1]
    wanted: dict[str, tuple[int, ...]] = {"delta": (t, e), "A": (e, n), "B": (t, n), "C": (t, n)}
    wanted |= {"z": (t, e), "D": (e,), "delta_bias": (e,)}
    given = {"delta": delta, "A": A, "B": B, "C": C, "z": z, "D": D, "delta_bias": delta_bias}
    for name, part in given.items():
        if part is not None and part.shape != wanted[name]:
            raise DataError(
                f"selective_scan got {name} {tuple(part.shape)} for u {(t, e)} and {n} states, "
                f"expected {wanted[name]}"
            )
    return sequence_bounds("selective_scan", offsets, t)


def sequence_bounds(name: str, offsets: Tensor | None, rows: int) -> list[int]:
    """Where sequences begin, and where the last ends; raise DataError unless they are all rows."""
    if offsets is None:
        return [0, rows]
    bounds: list[int] = offsets.tolist() if offsets.ndim == 1 else []
    rising = all(a <= b for a, b in itertools.pairwise(bounds))
    if not bounds or bounds[0] != 0 or bounds[-1] != rows or not rising:
        raise DataError(
            f"{name} got offsets {bounds or tuple(offsets.shape)} for {rows} rows, expected (S+1,) "
            f"that rise from 0 to {rows}"
        )
    return bounds


def marks(offsets: Tensor | None, rows: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """What backends that walk over all rows at once know of sequences.

    Returns:
        (T,) bool, whether a sequence begins here in the walk; (T,) int64, the sequence whose walk
        ends here, else -1. Both on the CPU.
    """
    offsets = torch.tensor([0, rows]) if offsets is None else offsets.cpu()
    filled = offsets.diff().nonzero()[:, 0]
    first, final = offsets[filled], offsets[filled + 1] - 1
    if reverse:
        first, final = final, first
    begins = torch.zeros(rows, dtype=torch.bool)
    ends = torch.full((rows,), -1)
    begins[first] = True
    ends[final] = filled
    return begins, ends
