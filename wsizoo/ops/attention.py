"""Softmax attention of all queries to all keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops._dispatch import op


@op
def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """One softmax a query over all keys, of each of the leading axes by itself.

    score(i, j) = q_i . k_j / sqrt(d)

    Args:
        q: (..., m, d). k: (..., n, d). v: (..., n, e); one leading axis or more, the last of
            them of heads.
        dropout: share of the weights that is dropped; 0 outside of training.

    Returns:
        (..., m, e).

    Raises:
        DataError: shapes that do not fit together, and a share outside of [0, 1).

    Cost: m n (d + e) multiply-adds, and twice as many backward. The reference is torch's, which on
    a CPU holds all m x n weights where dropout is not 0; backends never do.
    Source: Vaswani et al., NeurIPS 2017, Section 3.2, https://arxiv.org/abs/1706.03762
    """
    check_attention(q, k, v, dropout)
    if q.ndim == 3:  # of which torch holds all weights
        return F.scaled_dot_product_attention(q[None], k[None], v[None], dropout_p=dropout)[0]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def check_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> None:
    """Raise DataError unless the arguments of `attention` fit together."""
    lead, d = q.shape[:-2], q.shape[-1:]
    fits = q.ndim >= 3 and k.shape == (*lead, *k.shape[-2:-1], *d)
    if not fits or v.shape != (*k.shape[:-1], *v.shape[-1:]):
        raise DataError(
            f"attention got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, expected "
            "(heads, m, d), (heads, n, d), (heads, n, e)"
        )
    if not 0 <= dropout < 1:
        raise DataError(f"attention got dropout {dropout}, expected a share below 1")
