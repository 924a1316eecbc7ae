import math

import pytest
import torch
from torch import Tensor, nn

from wsizoo.mamba import DT_RANGE, MambaBlock, VimBlock, param_groups

DIM = 20


def tokens(n: int = 30) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(0))


def seeded(kind: type[nn.Module], **options: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(DIM, **options)


@torch.no_grad()
def test_parameters_start_as_published() -> None:
    block = MambaBlock(DIM)
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "A_log": (40, 16),
        "D": (40,),
        "in_proj.weight": (80, 20),
        "conv1d.weight": (40, 1, 4),
        "conv1d.bias": (40,),
        "x_proj.weight": (34, 40),
        "dt_proj.weight": (40, 2),
        "dt_proj.bias": (40,),
        "out_proj.weight": (20, 40),
    }
    assert torch.equal(block.A_log[7].exp().round(), torch.arange(1.0, 17))
    assert torch.equal(block.D, torch.ones(40))
    assert float(block.dt_proj.weight.abs().max()) <= 2**-0.5
    dt = nn.functional.softplus(MambaBlock(500).dt_proj.bias)
    low, high = DT_RANGE
    assert low * 0.99 <= float(dt.min()) and float(dt.max()) <= high * 1.01
    assert float(dt.log().mean()) == pytest.approx(math.log(math.sqrt(low * high)), abs=0.2)


def test_vim_starts_its_backward_step_at_zero_if_asked() -> None:
    assert seeded(VimBlock).dt_proj_b.bias.any()  # type: ignore[union-attr]
    assert not seeded(VimBlock, vim_init=True).dt_proj_b.bias.any()  # type: ignore[union-attr]


def test_a_shared_convolution_has_no_second_one() -> None:
    shared, own = seeded(VimBlock, share_conv=True), seeded(VimBlock)
    missing = set(own.state_dict()) - set(shared.state_dict())
    assert missing == {"conv1d_b.weight", "conv1d_b.bias"}
    state = own.state_dict() | {f"conv1d_b.{k}": v for k, v in own.conv1d.state_dict().items()}
    own.load_state_dict(state)
    shared.load_state_dict({k: v for k, v in state.items() if k not in missing})
    assert torch.equal(shared(tokens()), own(tokens()))


def test_a_and_d_have_no_weight_decay_and_what_is_frozen_is_in_no_group() -> None:
    part = nn.Sequential(MambaBlock(DIM), VimBlock(DIM), nn.Linear(DIM, 1))
    part[0].out_proj.weight.requires_grad_(False)
    names = {id(p): name for name, p in part.named_parameters()}
    decayed, spared = param_groups(part, 1e-3, undecayed=[part[2].bias])
    assert [names[id(p)] for p in spared["params"]] == [
        *("0.A_log", "0.D", "1.A_log", "1.D", "1.A_b_log", "1.D_b", "2.bias")
    ]
    assert (decayed["lr"], spared["lr"], spared["weight_decay"]) == (1e-3, 1e-3, 0.0)
    assert "weight_decay" not in decayed  # the training's
    frozen = {"0.out_proj.weight"}
    listed = [names[id(p)] for group in (decayed, spared) for p in group["params"]]
    assert sorted(listed) == sorted(set(names.values()) - frozen)


@pytest.mark.parametrize("kind", [MambaBlock, VimBlock])
def test_packed_sequences_do_not_see_each_other(kind: type[nn.Module]) -> None:
    block, x = seeded(kind), tokens()
    offsets = torch.tensor([0, 11, 11, 12, 30])
    parts = [block(x[a:b]) for a, b in ((0, 11), (11, 12), (12, 30))]
    torch.testing.assert_close(block(x, offsets), torch.cat(parts))


def test_a_block_sees_what_came_before_and_nothing_after() -> None:
    block, x = seeded(MambaBlock), tokens()
    changed = x.clone()
    changed[17] += 1
    moved = (block(changed) - block(x)).abs().amax(1) > 0
    assert moved.tolist() == [i >= 17 for i in range(30)]
    back = (block(changed, reverse=True) - block(x, reverse=True)).abs().amax(1) > 0
    assert back.tolist() == [i <= 17 for i in range(30)]


def test_vim_sees_everything() -> None:
    block, x = seeded(VimBlock), tokens()
    changed = x.clone()
    changed[17] += 1
    assert bool(((block(changed) - block(x)).abs().amax(1) > 0).all())


def test_divided_and_scaled() -> None:
    plain, x = seeded(VimBlock), tokens()
    torch.testing.assert_close(seeded(VimBlock, divide_out=True)(x), plain(x) / 2)
    torch.testing.assert_close(seeded(VimBlock, layer_scale=0.1)(x), plain(x) * 0.1)


def test_float64_is_kept_through_a_block() -> None:
    block, x = seeded(MambaBlock), tokens()
    wide = block(x)
    torch.testing.assert_close(block.double()(x.double()).float(), wide)
    assert block(x.double()).dtype == torch.float64
