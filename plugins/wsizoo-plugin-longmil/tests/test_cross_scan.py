import pytest
import torch
from torch import Tensor
from wsizoo_plugin_longmil.cross_scan import CrossScanMamba, cross_orders

DIM = 8


def layer() -> CrossScanMamba:
    torch.manual_seed(0)
    return CrossScanMamba(DIM).double()


def slide(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens, and as many occupied cells of a square, rows and columns with gaps."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.randperm(4 * n, generator=generator)[:n]
    edge = max(1, round((4 * n) ** 0.5))
    tokens = torch.randn(n, DIM, generator=generator, dtype=torch.float64)
    return tokens, torch.stack([at // edge, at % edge], 1)


def offsets_of(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def test_columns_then_rows() -> None:
    cells = torch.tensor([[5, 2], [0, 9], [0, 1], [5, 1]])
    assert cross_orders(cells, offsets_of(4)).tolist() == [2, 1, 3, 0, 2, 3, 0, 1]
    assert cross_orders(cells, offsets_of(2, 0, 2)).tolist() == [1, 0, 2, 3, 0, 1, 2, 3]


def test_it_is_the_mean_of_four_scans_put_back() -> None:
    mixer, (tokens, cells) = layer(), slide(20)
    normed, scans = mixer.norm(tokens), []
    for keys in ((0, 1), (1, 0)):
        order = sorted(range(20), key=lambda i: tuple(int(cells[i, key]) for key in keys))
        for way in (order, order[::-1]):
            scanned = torch.empty_like(tokens)
            scanned[way] = mixer.mamba(normed[way])
            scans.append(scanned)
    expected = tokens + torch.stack(scans).mean(0)
    torch.testing.assert_close(mixer(tokens, cells, offsets_of(20)), expected)


@pytest.mark.parametrize("n", [1, 2, 57])
def test_the_order_in_which_patches_are_given_changes_nothing(n: int) -> None:
    mixer, (tokens, cells) = layer(), slide(n)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    found = mixer(tokens[shuffled], cells[shuffled], offsets_of(n))
    torch.testing.assert_close(found, mixer(tokens, cells, offsets_of(n))[shuffled])


def test_where_cells_lie_matters() -> None:
    mixer, (tokens, cells) = layer(), slide(57)
    moved = mixer(tokens, cells.flip(0), offsets_of(57))
    assert (moved - mixer(tokens, cells, offsets_of(57))).abs().max() > 1e-3


def test_packed_slides_do_not_see_each_other() -> None:
    mixer, slides = layer(), [slide(n, seed) for seed, n in enumerate((7, 1, 30))]
    tokens, cells = (torch.cat(parts) for parts in zip(*slides, strict=True))
    alone = torch.cat([mixer(t, c, offsets_of(len(t))) for t, c in slides])
    torch.testing.assert_close(mixer(tokens, cells, offsets_of(7, 1, 30)), alone)
    torch.testing.assert_close(mixer(tokens, cells, offsets_of(7, 0, 1, 30)), alone)


def test_a_frame_that_is_moved_or_a_gap_that_widens_changes_nothing() -> None:
    mixer, (tokens, cells) = layer(), slide(30)
    expected = mixer(tokens, cells, offsets_of(30))
    assert torch.equal(mixer(tokens, cells * 3 - 1000, offsets_of(30)), expected)


def test_every_parameter_learns() -> None:
    mixer, (tokens, cells) = layer(), slide(30)
    mixer(tokens, cells, offsets_of(30)).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_no_tokens_give_none() -> None:
    found = layer()(torch.zeros(0, DIM).double(), torch.zeros(0, 2).long(), offsets_of(0))
    assert found.shape == (0, DIM)
