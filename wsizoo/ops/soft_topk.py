"""Gates between 0 and 1 that sum to k over each slide: a top-k that has a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.names import suggest
from wsizoo.ops._dispatch import op
from wsizoo.ops.hard_topk import by_score, check_scores

FORMS = ("sigmoid", "laplace")
MOST_STEPS = 200
NEAR = 1e-7  # the last of Newton's steps: the next would be its square
EPSILON = torch.finfo(torch.float64).eps
FARTHEST = 1e300


class SoftTopk(NamedTuple):
    """Gates of all rows, (N,) each, in the dtype of the scores.

    Args:
        gates: how much of each row passes. rest: 1 - gates; exact where gates round to 1.
        root, rest_root: sqrt(gates), sqrt(rest); their gradients stay bounded at gates of 0 and 1.
    """

    gates: Tensor
    rest: Tensor
    root: Tensor
    rest_root: Tensor


@op
def soft_topk(
    scores: Tensor,
    k: float | Tensor,
    temperature: float,
    *,
    offsets: Tensor | None = None,
    form: str = "sigmoid",
) -> SoftTopk:
    """Gates F((score - b) / temperature), with a b for each slide such that its gates sum to k.

    F(u) is 1 / (1 + e^-u) ("sigmoid"), or e^u / 2 below 0 and 1 - e^-u / 2 above ("laplace").
    Towards temperature 0 the gates become the mask of `hard_topk`, rows tied for the last places
    sharing them; towards infinity each becomes k / n. Where k is n or more, all gates are exactly
    1, without gradient.

    Args:
        scores: (N,), rows of all slides one after another.
        k: above 0, not only whole numbers; or (B,), one a slide.
        temperature: above 0, in the unit of the scores.
        offsets: (B+1,) int64, slide b has rows offsets[b]:offsets[b+1]; None: one slide.
        form: "sigmoid" or "laplace".

    Returns:
        SoftTopk. Scores alone have a gradient, a first one alone; it sums to 0 over each slide.

    Raises:
        DataError: scores that are NaN or infinite, slides without rows, k or temperature that are
            not above 0, a form that there is not; in backward, a second derivative.

    Cost: 2 to 10 evaluations of F in float64, whatever the dtype, and one for backward; packed
    slides are sorted first. Under torch.compile the search for b stays outside of the graph.
    Source: DiffPrune (https://arxiv.org/abs/2605.28051), eq. 4; "laplace" is LapSum's
    (https://github.com/gmum/LapSum at c277d1a).
    Differs: b by Newton's method inside a bracket, for both forms, where LapSum sorts.
    """
    if form not in FORMS:
        raise DataError(f"soft_topk got form '{form}'. {suggest(form, FORMS, 'Known: ')}")
    if not 0 < temperature < torch.inf:
        raise DataError(f"soft_topk got temperature {temperature}, expected a number above 0")
    bags = _Bags.of(check_scores("soft_topk", scores, offsets), scores.device)
    with torch.no_grad():
        u = _distances(scores.detach().double(), _counts(k, bags), temperature, bags, form)
    found: Any = _Gates.apply
    return SoftTopk(*found(scores, u, bags, temperature, form))


@dataclass(frozen=True)
class _Bags:
    """Which rows belong together. lengths: (B,) int64."""

    lengths: Tensor

    @classmethod
    def of(cls, bounds: list[int], device: torch.device) -> _Bags:
        return cls(torch.tensor(bounds, device=device).diff())

    def most(self, values: Tensor) -> Tensor:
        """(N,) -> (B,), the largest of each slide."""
        if len(self.lengths) == 1:
            return values.amax(0, keepdim=True)
        return torch.segment_reduce(values, "max", lengths=self.lengths, unsafe=True)

    def sum(self, values: Tensor) -> Tensor:
        """(N,) -> (B,)."""
        if len(self.lengths) == 1:
            return values.sum(0, keepdim=True)
        return torch.segment_reduce(values, "sum", lengths=self.lengths, unsafe=True)

    def spread(self, each: Tensor, like: Tensor) -> Tensor:
        """(B,) -> what adds to rows (N,)."""
        if len(self.lengths) == 1:
            return each
        return torch.repeat_interleave(each, self.lengths, output_size=len(like))


def _counts(k: float | Tensor, bags: _Bags) -> Tensor:
    """(B,) float64, how many rows of each slide pass; raise DataError unless all are above 0."""
    slides = len(bags.lengths)
    given = torch.as_tensor(k, dtype=torch.float64, device=bags.lengths.device)
    if given.shape not in ((), (slides,)):
        raise DataError(
            f"soft_topk got k {tuple(given.shape)} for {slides} slides, expected a number or "
            f"({slides},)"
        )
    if not bool((given > 0).all()):
        wrong = float(given[~(given > 0)].flatten()[0])
        raise DataError(f"soft_topk got k = {wrong:g}, expected a number above 0")
    return given.expand(slides)


def _distances(scores: Tensor, k: Tensor, temperature: float, bags: _Bags, form: str) -> Tensor:
    """(N,) float64, u = (score - b) / temperature; infinity where all rows of a slide pass."""
    whole = k >= bags.lengths
    k = torch.where(whole, bags.lengths / 2, k)
    last, following = _around(scores, k, bags)
    t = (scores - bags.spread(last, scores)) / temperature  # exact where b will lie
    t = t.clamp(-FARTHEST, FARTHEST)
    share = k / bags.lengths
    if form == "sigmoid":
        each = torch.log(share) - torch.log1p(-share)
    else:
        each = torch.where(share < 0.5, torch.log(2 * share), -torch.log(2 * (1 - share)))
    low, high = -bags.most(-t) - each, bags.most(t) - each  # each: u of all rows, were they equal
    b = torch.where(k == k.ceil(), (following - last) / (2 * temperature), 0.0).clamp(low, high)
    done = whole
    for _ in range(MOST_STEPS):
        over, step = _step(t - bags.spread(b, t), k, bags, form)
        low, high = torch.where(over > 0, b, low), torch.where(over > 0, high, b)
        new = torch.where(over == 0, b, b + step)
        inside = (low <= new) & (new <= high)
        new = torch.where(inside, new, (low + high) / 2)
        near = (new - b).abs() <= NEAR + 4 * EPSILON * b.abs()
        b, done = torch.where(done, b, new), done | near
        if bool(done.all()):
            break
    return t - bags.spread(torch.where(whole, -torch.inf, b), t)


def _around(scores: Tensor, k: Tensor, bags: _Bags) -> tuple[Tensor, Tensor]:
    """(B,) each, the k-th largest score of each slide, and the one that follows it if there is."""
    if len(k) == 1:
        most = min(int(k.ceil()) + 1, len(scores))
        ends = scores.topk(most, sorted=False).values.topk(min(2, most), largest=False).values
        return ends[-1:], ends[:1]
    best = scores[by_score(scores, bags.lengths)]
    starts = bags.lengths.cumsum(0) - bags.lengths
    at = (k.ceil() - 1).long()
    return best[starts + at], best[starts + torch.minimum(at + 1, bags.lengths - 1)]


def _step(u: Tensor, k: Tensor, bags: _Bags, form: str) -> tuple[Tensor, Tensor]:
    """(B,) each, what the gates' sum has over k, and Newton's step of b.

    Rows with u >= 0 pass but for 1 - F(u), others do not but for F(u): so written, nothing near 1
    is subtracted. Of the logarithm of both sides, since there Newton's step is right far away.
    """
    lower, _ = _sides(u, form)
    above = (u >= 0).double()
    lower_above = lower * above
    lacking = k - bags.sum(above)
    of_above = bags.sum(lower_above)
    of_below = (bags.sum(lower) - of_above).clamp(min=0)
    passing, missing = of_below + (-lacking).clamp(min=0), of_above + lacking.clamp(min=0)
    if form == "sigmoid":  # F' = F (1 - F), else it is F itself
        squares = bags.sum(lower_above * lower)
        of_below = of_below - (bags.sum(lower * lower) - squares)
        of_above = of_above - squares
    step = torch.log(passing / missing) / (of_below / passing + of_above / missing)
    return passing - missing, step


def _sides(u: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """F(-|u|) and F(|u|); neither overflows, nor does the first lose its digits."""
    e = torch.exp(-u.abs())
    if form == "laplace":
        return e / 2, 1 - e / 2
    upper = 1 / (1 + e)
    return e * upper, upper


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(
        scores: Tensor, u: Tensor, bags: _Bags, temperature: float, form: str
    ) -> tuple[Tensor, ...]:
        lower, upper = _sides(u, form)
        below = u < 0
        gates, rest = torch.where(below, lower, upper), torch.where(below, upper, lower)
        return tuple(p.to(scores.dtype) for p in (gates, rest, gates.sqrt(), rest.sqrt()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        scores, u, *ctx.rest = inputs
        ctx.save_for_backward(scores, u)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        apply: Any = _Slope.apply
        return apply(*ctx.saved_tensors, *slopes, *ctx.rest), None, None, None, None


class _Slope(torch.autograd.Function):
    """The gradient of the scores from those of gates, rest and their roots; itself without one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        scores: Tensor,
        u: Tensor,
        of_gates: Tensor,
        of_rest: Tensor,
        of_root: Tensor,
        of_rest_root: Tensor,
        bags: _Bags,
        temperature: float,
        form: str,
    ) -> Tensor:
        lower, upper = _sides(u, form)
        below, share = u < 0, upper if form == "sigmoid" else 1.0
        slope = lower * share  # F'
        low, high = lower.sqrt() * share / 2, slope / (2 * upper.sqrt())  # of the roots of F
        of_u = slope * (of_gates - of_rest)
        of_u = of_u + torch.where(below, low, high) * of_root
        of_u = of_u - torch.where(below, high, low) * of_rest_root
        # share of each row in the slope of b: F' over its sum, safe where all F' are near 0
        nearest = -bags.most(-u.abs())
        nearest = torch.where(nearest < torch.inf, nearest, 0.0)
        weight = torch.exp(bags.spread(nearest, u) - u.abs()) * share * share
        total = bags.sum(weight).clamp(min=torch.finfo(torch.float64).tiny)
        of_scores = (of_u - weight * bags.spread(bags.sum(of_u) / total, u)) / temperature
        return of_scores.to(scores.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        raise DataError(
            "soft_topk has a first derivative only, and was asked for a second; take the first "
            "without create_graph=True, or detach the gates"
        )
