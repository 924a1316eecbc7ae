"""Dropout whose mask is drawn again drops as large a share, and the same in backward."""

import pytest
import torch

from wsizoo.ops import Dropout, use_backend
from wsizoo.ops.draws import Draws


@pytest.mark.parametrize("share", [0, 0.0, 0.25, 0.1, 0.5, 1 - 1 / 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.bfloat16])
def test_draws_keep_what_is_not_dropped(share: float, dtype: torch.dtype) -> None:
    draws = Draws(share, torch.Generator().manual_seed(0))
    assert draws.kept == pytest.approx(1 - share, abs=1e-5)
    kept = draws.keep(torch.empty(1000, 1001, dtype=dtype)).float()
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(1 - share, abs=0.002)


def test_a_seed_is_drawn_again_and_nothing_where_nothing_is_dropped() -> None:
    first, second = (Draws.of(0.25, 7).keep(torch.empty(50)) for _ in range(2))
    assert torch.equal(first, second)
    assert Draws.of(0.0, 7) is None


def test_the_gradient_is_of_what_was_kept() -> None:
    module, x = Dropout(0.25), torch.ones(100, 1000, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert torch.equal(out, x.grad)
    assert float(out.detach().mean()) == pytest.approx(1, abs=0.01)
    assert out.detach().unique().tolist() == pytest.approx([0, 4 / 3])
    assert not torch.equal(module(x), out)


def test_it_keeps_no_mask() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        Dropout(0.25)(torch.ones(10, requires_grad=True))
    assert not kept


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_it_is_torchs_where_nothing_is_drawn_or_somebody_looks(share: float) -> None:
    x = torch.randn(9)
    assert torch.equal(Dropout(share)(x), x * (1 - share))
    assert Dropout(0.5).eval()(x) is x
    with use_backend("reference"):
        torch.manual_seed(0)
        ours = Dropout(0.5)(x)
        torch.manual_seed(0)
        assert torch.equal(ours, torch.nn.functional.dropout(x))
