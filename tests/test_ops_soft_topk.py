"""Laws of soft_topk, against the closed form of the Laplace threshold and against itself."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops import SoftTopk, hard_topk, soft_topk

FORMS = ("sigmoid", "laplace")
TEMPERATURES = (0.01, 0.1, 0.5, 2.0)
SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 60)
NO_DEADLINE = settings(deadline=None)
forms = pytest.mark.parametrize("form", FORMS)


def scores_of(n: int, seed: int, levels: int = 0) -> Tensor:
    """(n,) float64; with levels, as many values at most, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(levels, (n,), generator=generator).double()
    return torch.randn(n, generator=generator, dtype=torch.float64)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def close(found: Any, expected: Any, off: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=off, atol=off)


def lapsum(scores: Tensor, k: float, temperature: float) -> Tensor:
    """Gates by LapSum's closed form: sums of exponentials on either side of each knot, sorted."""
    t = (scores.double() / temperature).sort().values
    n = len(t)
    below = torch.exp(torch.logcumsumexp(t, 0) - t)
    above = torch.exp(torch.logcumsumexp(-t.flip(0), 0).flip(0) + t)
    at_knot = below / 2 + (n - torch.arange(1, n + 1)) - (above - 1) / 2
    j = int((at_knot > k).sum())
    if j == 0:
        b = t[0] + torch.log(2 * (n - k) / above[0])
    elif j == n:
        b = t[-1] + torch.log(below[-1] / (2 * k))
    else:
        a, c = below[j - 1], n - j - k
        rest = torch.logsumexp(t[j - 1] - t[j:], 0)  # its exp may underflow
        root = torch.sqrt(c * c + a * rest.exp())
        b = t[j - 1] + (torch.log(c + root) - rest if c >= 0 else torch.log(a / (root - c)))
    u = scores.double() / temperature - b
    e = torch.exp(-u.abs()) / 2
    return torch.where(u < 0, e, 1 - e)


@forms
@NO_DEADLINE
@given(SIZES, SEEDS, st.floats(0.01, 0.999), st.floats(0.003, 5), st.sampled_from([0, 2, 5]))
def test_gates_sum_to_k_between_0_and_1(
    form: str, n: int, seed: int, share: float, temperature: float, levels: int
) -> None:
    scores, k = scores_of(n, seed, levels).float(), share * n
    found = soft_topk(scores, k, temperature, form=form)
    assert all(part.dtype == torch.float32 and part.shape == (n,) for part in found)
    assert bool(((found.gates >= 0) & (found.gates <= 1)).all())
    assert float(found.gates.double().sum()) == pytest.approx(k, rel=1e-6)
    close(found.gates + found.rest, torch.ones(n), 1e-6)
    close(found.root**2, found.gates, 1e-6)
    close(found.rest_root**2, found.rest, 1e-6)


@forms
@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("k", [1, 31.5, 500, 999])
@pytest.mark.parametrize("temperature", [1e-6, 0.02, 3.0, 1e6])
def test_gates_of_many_rows_sum_to_k(form: str, n: int, k: float, temperature: float) -> None:
    scores = 100 * scores_of(n, 3).float()
    found = soft_topk(scores, k, temperature, form=form)
    assert float(found.gates.double().sum()) == pytest.approx(k, rel=1e-6)


@NO_DEADLINE
@given(SIZES, SEEDS, st.floats(0.01, 0.99), st.floats(0.01, 5), st.sampled_from([0, 3]))
def test_laplace_equals_the_closed_form(
    n: int, seed: int, share: float, temperature: float, levels: int
) -> None:
    scores = scores_of(n, seed, levels)
    found = soft_topk(scores, share * n, temperature, form="laplace")
    close(found.gates, lapsum(scores, share * n, temperature))


@forms
@NO_DEADLINE
@given(SIZES, SEEDS, st.integers(1, 59), st.sampled_from(TEMPERATURES), st.floats(-50, 50))
def test_neither_a_constant_nor_the_scale_matters(
    form: str, n: int, seed: int, k: int, temperature: float, by: float
) -> None:
    scores = scores_of(n, seed)
    gates = soft_topk(scores, k, temperature, form=form).gates
    close(soft_topk(scores + by, k, temperature, form=form).gates, gates)
    scale = abs(by) + 0.1
    close(soft_topk(scores * scale, k, temperature * scale, form=form).gates, gates)


@forms
@NO_DEADLINE
@given(st.integers(2, 60), SEEDS, st.integers(1, 59), st.sampled_from(TEMPERATURES))
def test_order_is_kept_and_equals_get_equals(
    form: str, n: int, seed: int, k: int, temperature: float
) -> None:
    scores = scores_of(n, seed, levels=7)
    gates = soft_topk(scores, k, temperature, form=form).gates
    higher, lower = torch.where(scores[:, None] > scores), torch.where(scores[:, None] == scores)
    assert bool((gates[higher[0]] >= gates[higher[1]]).all())
    assert torch.equal(gates[lower[0]], gates[lower[1]])
    close(soft_topk(scores.flip(0), k, temperature, form=form).gates.flip(0), gates)


@forms
@NO_DEADLINE
@given(st.integers(2, 60), SEEDS, st.floats(0.02, 0.98), st.sampled_from(TEMPERATURES))
def test_what_passes_and_what_does_not_change_places(
    form: str, n: int, seed: int, share: float, temperature: float
) -> None:
    scores, k = scores_of(n, seed), share * n
    kept = soft_topk(scores, k, temperature, form=form)
    dropped = soft_topk(-scores, n - k, temperature, form=form)
    for one, other in zip(kept, (dropped[1], dropped[0], dropped[3], dropped[2]), strict=True):
        close(one, other)


@forms
@NO_DEADLINE
@given(SIZES, SEEDS, st.integers(1, 60))
def test_the_hottest_is_uniform_and_the_coldest_the_hard_mask(
    form: str, n: int, seed: int, k: int
) -> None:
    scores = scores_of(n, seed)
    hot = soft_topk(scores, k, 1e9, form=form).gates
    close(hot, torch.full_like(hot, min(k / n, 1)), 1e-7)
    gaps = scores.sort().values.diff()
    assume(n == 1 or float(gaps.min()) > 1e-5)
    mask = torch.zeros_like(scores)
    mask[hard_topk(scores, k)] = 1
    close(soft_topk(scores, k, 1e-7, form=form).gates, mask, 1e-9)


@forms
@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-30, 5e-324])
def test_rows_tied_for_the_last_places_share_them(form: str, temperature: float) -> None:
    scores = torch.tensor([1.0, 5.0, 3.0, 3.0, 3.0, 0.0, 3.0, 4.0])
    gates = soft_topk(scores, 5, temperature, form=form).gates
    close(gates, torch.tensor([0, 1, 0.75, 0.75, 0.75, 0, 0.75, 1]), 1e-6)


@forms
def test_equal_scores_share_equally_and_have_a_gradient(form: str) -> None:
    scores = torch.full((10,), 7.0, requires_grad=True)
    gates = soft_topk(scores, 4, 0.1, form=form).gates
    close(gates, torch.full((10,), 0.4), 1e-6)
    (gates * torch.arange(10)).sum().backward()
    assert scores.grad is not None and bool((scores.grad.diff() > 0).all())


@forms
@NO_DEADLINE
@given(
    SIZES, SEEDS, st.floats(0.02, 0.98), st.sampled_from([0.1, 0.5, 2.0]), st.sampled_from([0, 4])
)
def test_gradients_are_those_of_differences(
    form: str, n: int, seed: int, share: float, temperature: float, levels: int
) -> None:
    scores = scores_of(min(n, 8), seed, levels).requires_grad_()
    k = share * len(scores)
    if form == "laplace":  # has a kink in F'' where a score is b
        u = torch.log(soft_topk(scores, k, temperature, form=form).gates.detach() * 2)
        assume(bool((u.abs() > 1e-4).all()))
    assert torch.autograd.gradcheck(
        lambda s: tuple(soft_topk(s, k, temperature, form=form)), scores, atol=1e-4, rtol=1e-3
    )


@forms
@NO_DEADLINE
@given(SIZES, SEEDS, st.floats(0.02, 1.5), st.floats(0.001, 5))
def test_a_gradient_sums_to_zero_and_the_jacobian_is_symmetric(
    form: str, n: int, seed: int, share: float, temperature: float
) -> None:
    n = min(n, 12)
    scores = scores_of(n, seed)

    def gates(s: Tensor) -> Tensor:
        return soft_topk(s, share * n, temperature, form=form).gates

    jacobian = torch.autograd.functional.jacobian(gates, scores)
    close(jacobian * temperature, jacobian.T * temperature, 1e-12)
    close(jacobian.sum(1) * temperature, torch.zeros(n, dtype=torch.float64), 1e-12)
    leaf = scores.clone().requires_grad_()
    parts = soft_topk(leaf, share * n, temperature, form=form)
    sum((scores_of(n, seed + i) * part).sum() for i, part in enumerate(parts)).backward()  # type: ignore[union-attr]
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())
    assert float(leaf.grad.sum() * temperature) == pytest.approx(0, abs=1e-12)


def plain(scores: Tensor, k: float, temperature: float, form: str) -> list[Tensor]:
    """Gates and roots from an exact b, in float64, with autograd through all but b's iteration."""
    u = torch.special.logit(soft_topk(scores.detach(), k, temperature).gates)
    b = (scores.detach() / temperature - u).mean()
    for _ in range(2):  # a step of Newton's carries the gradient
        f = torch.sigmoid(scores / temperature - b)
        b = b + (f.sum() - k) / (f * (1 - f)).sum()
    u = scores / temperature - b
    logs = torch.nn.functional.logsigmoid(u), torch.nn.functional.logsigmoid(-u)
    return [torch.exp(log * power) for power in (1.0, 0.5) for log in logs]


@pytest.mark.parametrize("part", range(4))
def test_each_part_has_the_gradient_of_autograd(part: int) -> None:
    scores, cotangent = scores_of(50, 1).requires_grad_(), scores_of(50, 2)
    found = soft_topk(scores, 7, 0.3)[part]
    expected = plain(scores, 7, 0.3, "sigmoid")[part]
    close(found, expected)
    slope = torch.autograd.grad((found * cotangent).sum(), scores)[0]
    close(slope, torch.autograd.grad((expected * cotangent).sum(), scores)[0])


@forms
@pytest.mark.parametrize("temperature", [1e-3, 0.02])
def test_roots_keep_their_gradient_where_gates_round_to_0_and_1(
    form: str, temperature: float
) -> None:
    precise = scores_of(300, 5).requires_grad_()
    single = precise.detach().float().requires_grad_()
    weights = scores_of(300, 6), scores_of(300, 7)
    for scores in (precise, single):
        _, _, root, rest_root = soft_topk(scores, 8, temperature, form=form)
        (root * weights[0] + rest_root * weights[1]).sum().backward()
    assert precise.grad is not None and single.grad is not None
    off = (single.grad - precise.grad).abs().max() / precise.grad.abs().max()
    assert float(off) < 1e-4
    gates = soft_topk(single, 8, temperature, form=form)
    assert bool((gates.gates == 1).any()) and bool((gates.rest_root[gates.gates == 1] > 0).any())


@forms
def test_scores_far_apart_do_not_overflow(form: str) -> None:
    scores = torch.tensor([-800.0, 800, 799.5, 0, 3e4, -3e4, 1e30, -1e30], requires_grad=True)
    found = soft_topk(scores, 3.5, 0.5, form=form)
    assert float(found.gates.detach().sum()) == pytest.approx(3.5)
    sum(part.sum() for part in found).backward()  # type: ignore[union-attr]
    assert scores.grad is not None and bool(torch.isfinite(scores.grad).all())


@forms
@pytest.mark.parametrize("k", [5, 5.0, 7, 1e9, torch.inf])
def test_a_slide_of_no_more_than_k_rows_passes_exactly(form: str, k: float) -> None:
    scores = scores_of(5, 0).float().requires_grad_()
    found = soft_topk(scores, k, 0.7, form=form)
    for part, value in zip(found, (1, 0, 1, 0), strict=True):
        assert torch.equal(part, torch.full((5,), float(value)))
    sum((scores_of(5, 1) * part).sum() for part in found).backward()  # type: ignore[union-attr]
    assert scores.grad is not None and torch.equal(scores.grad, torch.zeros(5))


@forms
@NO_DEADLINE
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), SEEDS, st.sampled_from([0.02, 0.3, 2.0])
)
def test_packed_equals_one_by_one(
    form: str, lengths: list[int], seed: int, temperature: float
) -> None:
    check_packed(form, lengths, [4.0] * len(lengths), seed, temperature)


@forms
@pytest.mark.parametrize("lengths", [[1], [31, 1, 33, 32], [1, 1], [4096, 33, 1, 20_000]])
@pytest.mark.parametrize("temperature", [0.02, 2.0])
def test_packed_slides_of_any_length_keep_their_own_k(
    form: str, lengths: list[int], temperature: float
) -> None:
    check_packed(form, lengths, [32.0, 0.4, 32.0, 31.5][: len(lengths)], 1, temperature)


def check_packed(
    form: str, lengths: list[int], ks: list[float], seed: int, temperature: float
) -> None:
    packed = scores_of(sum(lengths), seed).requires_grad_()
    alone = packed.detach().clone().requires_grad_()
    k = torch.tensor(ks)
    together = soft_topk(packed, k, temperature, offsets=offsets_of(lengths), form=form)
    each = [
        soft_topk(s, n, temperature, form=form)
        for s, n in zip(alone.split(lengths), k.tolist(), strict=True)
    ]
    joined = SoftTopk(*(torch.cat(parts) for parts in zip(*each, strict=True)))
    for found in (together, joined):
        weighted = [(scores_of(len(packed), seed + i) * p).sum() for i, p in enumerate(found)]
        torch.stack(weighted).sum().backward()
    for one, other in zip(together, joined, strict=True):
        close(one, other, 1e-10)
    assert packed.grad is not None and alone.grad is not None
    close(packed.grad, alone.grad, 1e-8)


def test_a_second_derivative_is_refused() -> None:
    scores = scores_of(6, 0).requires_grad_()
    found = soft_topk(scores, 2, 0.5)
    slope = torch.autograd.grad(found.root.sum(), scores, create_graph=True)[0]
    with pytest.raises(DataError, match="first derivative only, and was asked for a second"):
        slope.sum().backward()


def test_torch_func_takes_gradients_and_jacobians() -> None:
    scores, weights, offsets = scores_of(7, 0), scores_of(7, 1), offsets_of([4, 3])

    def total(s: Tensor) -> Tensor:
        return (soft_topk(s, 2, 0.5, offsets=offsets).root * weights).sum()

    def gates(s: Tensor) -> Tensor:
        return soft_topk(s, 2, 0.5).gates

    leaf = scores.clone().requires_grad_()
    total(leaf).backward()
    close(torch.func.grad(total)(scores), leaf.grad)
    expected = torch.autograd.functional.jacobian(gates, scores)
    close(torch.func.jacrev(gates)(scores), expected)


@pytest.mark.filterwarnings("ignore")  # of torch's own, about its autograd functions
def test_it_compiles_in_pieces() -> None:
    def run(s: Tensor) -> Tensor:
        return soft_topk(s * 2, 3, 0.5).root * 2

    compiled, scores = torch.compile(run, backend="eager"), scores_of(9, 0)
    close(compiled(scores), run(scores))


def test_no_slides_have_no_gates() -> None:
    found = soft_topk(torch.zeros(0), 3, 0.5, offsets=torch.tensor([0]))
    assert [part.shape for part in found] == [(0,)] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_follows_the_scores(dtype: torch.dtype) -> None:
    scores = scores_of(9, 0).to(dtype)
    found = soft_topk(scores, 3, 0.5)
    assert all(part.dtype == dtype for part in found)
    close(found.gates, soft_topk(scores.double(), 3, 0.5).gates.to(dtype))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "soft_topk got k = 0, expected a number above 0"),
        ({"k": -1.5}, "soft_topk got k = -1.5, expected a number above 0"),
        ({"k": float("nan")}, "soft_topk got k = nan, expected a number above 0"),
        ({"k": torch.ones(3)}, r"soft_topk got k \(3,\) for 2 slides, expected a number or \(2,\)"),
        ({"temperature": 0.0}, "soft_topk got temperature 0.0, expected a number above 0"),
        ({"temperature": float("nan")}, "temperature nan, expected a number above 0"),
        ({"temperature": float("inf")}, "temperature inf, expected a number above 0"),
        ({"form": "sigmoyd"}, "soft_topk got form 'sigmoyd'. Did you mean 'sigmoid'"),
        ({"offsets": torch.tensor([0, 2])}, r"soft_topk got offsets \[0, 2\] for 4 rows"),
        ({"offsets": torch.tensor([0, 4, 4])}, "soft_topk: slide 1 of 2 has no rows to choose"),
        ({"scores": torch.zeros(2, 2)}, r"soft_topk got scores \(2, 2\) of torch.float32"),
        ({"scores": torch.zeros(4).long()}, r"soft_topk got scores \(4,\) of torch.int64"),
        (
            {"scores": torch.tensor([0, 0, torch.nan, 0])},
            "soft_topk got the score nan for row 1 of slide 1, expected finite numbers",
        ),
        ({"scores": torch.tensor([-torch.inf, 0, 0, 0])}, "the score -inf for row 0 of slide 0"),
    ],
)
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    asked = {"scores": torch.zeros(4), "k": 2, "temperature": 1.0}
    asked |= {"offsets": torch.tensor([0, 1, 4]), **changed}
    with pytest.raises(DataError, match=message):
        soft_topk(asked.pop("scores"), asked.pop("k"), asked.pop("temperature"), **asked)
