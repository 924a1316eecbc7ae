"""A short convolution of each channel along packed sequences, which sees no later step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.bag import segment_ids
from wsizoo.errors import DataError
from wsizoo.names import suggest
from wsizoo.ops._dispatch import op
from wsizoo.ops.selective_scan import sequence_bounds

ACTIVATIONS = ("silu", "none")


@op
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "silu",
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Each channel's weighted sum over the step and those before it, steps before the first are 0.

    y[t] = act(bias + sum_i weight[:, i] x[t - (W - 1) + i]), so the last tap is of the step itself.

    Args:
        x: (T, E), steps of all sequences one after another.
        weight: (E, W). bias: (E,).
        activation: "silu" or "none".
        offsets: (S+1,) int64, sequence s has rows offsets[s]:offsets[s+1]; None: one sequence.
        reverse: each sequence runs from its last row to its first, as if it were flipped.

    Returns:
        (T, E), in the dtype of x; computed in float32 at least.

    Raises:
        DataError: shapes that do not fit together, offsets that are not those of T rows, an
            activation that there is not.

    Source: `causal_conv1d_ref` of https://github.com/Dao-AILab/causal-conv1d.
    Differs: theirs has (B, E, L) and sequences of one length.
    """
    check_conv(x, weight, bias, activation, offsets)
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, taps = x.to(wide), weight.to(wide).t()  # (T, E), (W, E)
    place = _places(x, offsets, reverse)
    total = rows * taps[-1]
    for back, tap in enumerate(taps.flip(0)[1:].unbind(0), start=1):
        earlier = rows[back:] if reverse else rows[: max(len(rows) - back, 0)]
        missing = len(rows) - len(earlier)
        earlier = F.pad(earlier, (0, 0, 0, missing) if reverse else (0, 0, missing, 0))  # (T, E)
        total = total + torch.where(place >= back, earlier, 0.0) * tap
    total = total if bias is None else total + bias.to(wide)
    return (F.silu(total) if activation == "silu" else total).to(x.dtype)


def _places(x: Tensor, offsets: Tensor | None, reverse: bool) -> Tensor:
    """(T, 1) int64, how many steps of its sequence come before each row."""
    at = torch.arange(len(x), device=x.device)
    if offsets is None:
        place = len(x) - 1 - at if reverse else at
    else:
        ids = segment_ids(offsets, len(x))
        place = offsets[1:][ids] - 1 - at if reverse else at - offsets[ids]
    return place[:, None]


def check_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, offsets: Tensor | None
) -> None:
    """Raise DataError unless the arguments of `causal_conv1d` fit together."""
    if x.ndim != 2 or weight.ndim != 2 or len(weight) != x.shape[1] or not weight.shape[1]:
        raise DataError(
            f"causal_conv1d got x {tuple(x.shape)} and weight {tuple(weight.shape)}, expected "
            "(rows, channels) and (channels, taps)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise DataError(
            f"causal_conv1d got bias {tuple(bias.shape)}, expected {tuple(weight.shape[:1])}"
        )
    if activation not in ACTIVATIONS:
        hint = suggest(activation, ACTIVATIONS, "Known: ")
        raise DataError(f"causal_conv1d got activation '{activation}'. {hint}")
    sequence_bounds("causal_conv1d", offsets, len(x))
