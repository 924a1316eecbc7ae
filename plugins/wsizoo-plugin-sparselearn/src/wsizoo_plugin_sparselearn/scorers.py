"""How much a patch is wanted, by its features: five small networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from wsizoo.errors import SpecError
from wsizoo.ops import attention_scores
from wsizoo.selection import check_option

ROWS = 1024  # of a chunk where no gradient is asked for: its numbers stay in the cache
WIDEST, HEADS = 256, 8  # of the hidden layer, and of attention, if nobody says otherwise


class Scorer(nn.Module):
    """(N, D) features of a slide -> (N,) scores, of any scale."""

    def forward(self, features: Tensor) -> Tensor:
        shared = self.shared(features)
        if torch.is_grad_enabled() or len(features) <= ROWS:
            return self.rows(features, shared)
        return torch.cat([self.rows(part, shared) for part in torch.split(features, ROWS)])

    def shared(self, features: Tensor) -> Tensor | None:
        """What all patches of a slide read; None: nothing."""
        return None

    def rows(self, features: Tensor, shared: Tensor | None) -> Tensor:
        """Some patches (n, D) -> (n,)."""
        raise NotImplementedError


class Linear(Scorer):
    """LayerNorm, then one linear map."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.score = nn.Linear(in_dim, 1)

    def rows(self, features: Tensor, shared: Tensor | None) -> Tensor:
        found: Tensor = self.score(self.norm(features))[:, 0]
        return found


class MLP(Scorer):
    """LayerNorm, a hidden layer with GELU, one linear map."""

    def __init__(self, in_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.hidden = nn.Linear(in_dim, hidden)
        self.score = nn.Linear(hidden, 1)

    def rows(self, features: Tensor, shared: Tensor | None) -> Tensor:
        hidden = nn.functional.gelu(self.hidden(self.norm(features)))  # (n, h)
        found: Tensor = self.score(hidden)[:, 0]
        return found


class Context(MLP):
    """As `MLP`, of a patch beside the mean of its slide's patches."""

    def __init__(self, in_dim: int, hidden: int) -> None:
        super().__init__(2 * in_dim, hidden)

    def shared(self, features: Tensor) -> Tensor | None:
        return features.mean(0)

    def rows(self, features: Tensor, shared: Tensor | None) -> Tensor:
        assert shared is not None
        both = torch.cat([features, shared.expand_as(features)], 1)  # (n, 2D)
        return super().rows(both, None)


class Gated(Scorer):
    """ABMIL's attention logits: w . (tanh(V h) * sigmoid(U h)), tensors called as ABMIL's are.

    Args:
        hidden: width of V and U.
        embedding: widths of layers before them, Linear + ReLU each; none: h is x.
        gated: with the factor sigmoid(U h).
    """

    def __init__(
        self, in_dim: int, hidden: int, embedding: Sequence[int] = (), gated: bool = True
    ) -> None:
        super().__init__()
        widths = [in_dim, *embedding]
        layers = [
            part
            for a, b in itertools.pairwise(widths)
            for part in (nn.Linear(a, b), nn.ReLU(), nn.Identity())  # ABMIL's dropout
        ]
        self.embed = nn.Sequential(*layers)
        self.value = nn.Linear(widths[-1], hidden)
        self.gate = nn.Linear(widths[-1], hidden) if gated else None
        self.score = nn.Linear(hidden, 1)

    def rows(self, features: Tensor, shared: Tensor | None) -> Tensor:
        embedded = self.embed(features)  # (n, E)
        return attention_scores(embedded, self.value, self.gate, self.score)[:, 0]


class Transformer(Scorer):
    """Two pre-norm layers of full attention, then one linear map. Cost: N^2, some thousand patches.

    Source: DiffPrune, https://arxiv.org/abs/2605.28051, Section 4.2.
    """

    def __init__(self, in_dim: int, hidden: int, heads: int) -> None:
        super().__init__()
        if in_dim % heads:
            raise SpecError(
                f"selector.heads is {heads}, expected a divisor of the features' width {in_dim}"
            )
        layers = [
            nn.TransformerEncoderLayer(
                in_dim, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        ]
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(in_dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.score(self.layers(features[None])[0])[:, 0]  # (1, N, D) -> (N,)
        return found


Maker = Callable[[int, int, Sequence[int], int], Scorer]
SCORERS: Mapping[str, Maker] = {
    "linear": lambda in_dim, hidden, embedding, heads: Linear(in_dim),
    "mlp": lambda in_dim, hidden, embedding, heads: MLP(in_dim, hidden),
    "gated": lambda in_dim, hidden, embedding, heads: Gated(in_dim, hidden, embedding),
    "context": lambda in_dim, hidden, embedding, heads: Context(in_dim, hidden),
    "transformer": lambda in_dim, hidden, embedding, heads: Transformer(in_dim, hidden, heads),
}


def make_scorer(
    name: str,
    in_dim: int,
    hidden: int | None = None,
    embedding: Sequence[int] = (),
    heads: int | None = None,
) -> Scorer:
    """A scorer of this name.

    Args:
        hidden: width of its hidden layer; None: that of the features, at most 256 (of a
            transformer's feed-forward layers: twice that of the features).
        embedding: of `gated`. heads: of `transformer`; None: 8.

    Raises:
        SpecError: no such scorer, or an option that it does not read.
    """
    check_option("scorer", name, name in SCORERS, f"one of {', '.join(SCORERS)}")
    check_option("embedding", list(embedding), not embedding or name == "gated", "scorer=gated")
    several = heads is None or (heads >= 1 and name == "transformer")
    check_option("heads", heads, several, "a number from 1, of scorer=transformer")
    wide = hidden is None or (hidden >= 1 and name != "linear")
    check_option("hidden", hidden, wide, "a number from 1, of a scorer with a hidden layer")
    if hidden is None:
        hidden = 2 * in_dim if name == "transformer" else min(in_dim, WIDEST)
    return SCORERS[name](in_dim, hidden, embedding, heads or HEADS)
