import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops import (
    Grids,
    Op,
    Rulebook,
    children,
    patch_merge,
    pixel_shuffle,
    pixel_shuffle_linear,
    rulebook,
    sparse_conv2d,
    sparse_conv_transpose2d,
    transpose_rulebook,
)
from wsizoo.testing import check_op_backend

BACKENDS = pytest.mark.parametrize("backend", ["reference", "gather"])
NO_DEADLINE = settings(deadline=None)
SHAPE = (9, 8)
FAR = 12_000_000
# kernel, stride, dilation
KERNELS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
# width in and out of a group, groups
WIDTHS = st.sampled_from([(3, 2, 1), (1, 1, 4), (1, 2, 3), (2, 1, 3), (2, 3, 2)])
NUMBERS = st.integers(0, 1000)


def cells_of(n: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> Tensor:
    """n cells of a grid, in any order."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(shape[0] * shape[1], generator=generator)[:n]
    return torch.stack([flat // shape[1], flat % shape[1]], 1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scatter(x: Tensor, cells: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(T, C) -> (1, C, h, w), zeros where no cell is."""
    dense = x.new_zeros(x.shape[1], *shape)
    dense[:, cells[:, 0], cells[:, 1]] = x.T
    return dense[None]


def gather(dense: Tensor, cells: Tensor) -> Tensor:
    return dense[0][:, cells[:, 0], cells[:, 1]].T


def dense_conv(
    x: Tensor, weight: Tensor, book: Rulebook, bias: Tensor, edge: str, after: bool
) -> Tensor:
    """The whole grid as torch convolves it, at the output cells."""
    how = {"stride": book.stride, "dilation": book.dilation}
    groups = x.shape[1] // weight.shape[1]
    total = F.conv2d(scatter(x, book.cells, SHAPE), weight, groups=groups, **how)
    here = scatter(x.new_ones(len(x), x.shape[1]), book.cells, SHAPE)
    if not after:
        total = total + bias[:, None, None]
    if edge == "count":
        total = total / F.conv2d(here[:, :1], torch.ones_like(weight[:1, :1]), **how)
    elif edge == "partial":
        total = total / F.conv2d(here, weight.abs(), groups=groups, **how).clamp(min=0.5)
    return gather(total + bias[:, None, None] if after else total, book.out_cells)


@BACKENDS
@NO_DEADLINE
@given(
    n=st.integers(0, 72),
    kernel=KERNELS,
    widths=WIDTHS,
    edge=st.sampled_from(["none", "count", "partial"]),
    after=st.booleans(),
    seed=NUMBERS,
)
def test_convolution_is_that_of_a_dense_grid_with_zeros(
    backend: str,
    n: int,
    kernel: tuple[int, int, int],
    widths: tuple[int, int, int],
    edge: str,
    after: bool,
    seed: int,
) -> None:
    i, o, groups = widths
    book = rulebook(cells_of(n, seed), SHAPE, *kernel)
    x, bias = draw(n, i * groups, seed=seed), draw(o * groups, seed=seed + 1)
    weight = draw(o * groups, i, kernel[0], kernel[0], seed=seed + 2)
    found = sparse_conv2d.on(backend)(
        x, weight, book, bias, edge, edge_eps=0.5, bias_after_edge=after
    )
    torch.testing.assert_close(found, dense_conv(x, weight, book, bias, edge, after))


@BACKENDS
@NO_DEADLINE
@given(n=st.integers(0, 72), kernel=KERNELS, widths=WIDTHS, seed=NUMBERS)
def test_transposed_convolution_is_that_of_a_dense_grid_at_the_input_cells(
    backend: str, n: int, kernel: tuple[int, int, int], widths: tuple[int, int, int], seed: int
) -> None:
    i, o, groups = widths
    k, stride, dilation = kernel
    book = rulebook(cells_of(n, seed), SHAPE, *kernel)
    x = draw(len(book.out_cells), i * groups, seed=seed)
    weight, bias = draw(i * groups, o, k, k, seed=seed + 1), draw(o * groups, seed=seed + 2)
    found = sparse_conv_transpose2d.on(backend)(x, weight, book, bias, groups)
    coarse = scatter(x, book.out_cells, SHAPE)  # larger than needed: targets lie in SHAPE
    how: dict[str, Any] = {"stride": stride, "groups": groups, "dilation": dilation}
    dense = F.conv_transpose2d(coarse, weight, bias, **how)
    torch.testing.assert_close(found, gather(dense, book.cells))


@BACKENDS
@NO_DEADLINE
@given(n=st.integers(0, 72), kernel=KERNELS, widths=WIDTHS, seed=NUMBERS)
def test_the_transpose_is_the_adjoint(
    backend: str, n: int, kernel: tuple[int, int, int], widths: tuple[int, int, int], seed: int
) -> None:
    i, o, groups = widths
    book = rulebook(cells_of(n, seed), SHAPE, *kernel)
    x = draw(n, i * groups, seed=seed)
    y = draw(len(book.out_cells), o * groups, seed=seed + 1)
    weight = draw(o * groups, i, kernel[0], kernel[0], seed=seed + 2)
    there = sparse_conv2d.on(backend)(x, weight, book)
    back = sparse_conv_transpose2d.on(backend)(y, weight, book, groups=groups)
    torch.testing.assert_close((there * y).sum(), (x * back).sum())


@BACKENDS
def test_a_target_that_no_kernel_reaches_has_the_bias(backend: str) -> None:
    book = transpose_rulebook(torch.tensor([[1, 1]]), torch.tensor([[2, 3], [4, 4]]))
    x, weight, bias = draw(1, 2), draw(2, 3, 2, 2), draw(3)
    found = sparse_conv_transpose2d.on(backend)(x, weight, book, bias)
    torch.testing.assert_close(found, torch.stack([x[0] @ weight[:, :, 0, 1] + bias, bias]))
    assert not sparse_conv_transpose2d.on(backend)(x, weight, book)[1].any()
    shuffled = pixel_shuffle_linear.on(backend)(x, draw(8, 2), book, draw(8))
    assert shuffled[0].all() and not shuffled[1].any()


@NO_DEADLINE
@given(n=st.integers(0, 72), side=st.integers(1, 3), seed=NUMBERS)
def test_patches_merge_position_by_position(n: int, side: int, seed: int) -> None:
    book = rulebook(cells_of(n, seed), SHAPE, side, side)
    x = draw(n, 3, seed=seed)
    merged = patch_merge(x, book)
    columns = F.unfold(scatter(x, book.cells, SHAPE), side, stride=side)  # (1, 3 s^2, cells)
    width = SHAPE[1] // side
    at = book.out_cells[:, 0] * width + book.out_cells[:, 1]
    by_channel = columns[0].T[at].view(-1, 3, side**2)
    torch.testing.assert_close(merged, by_channel.mT.flatten(1))
    for edge in ("count", "partial"):
        torch.testing.assert_close(patch_merge(x, book, edge) * book.counts[:, None], merged)


@BACKENDS
@NO_DEADLINE
@given(n=st.integers(1, 72), seed=NUMBERS)
def test_merging_and_a_linear_is_the_convolution_that_the_docstring_says(
    backend: str, n: int, seed: int
) -> None:
    book, x = rulebook(cells_of(n, seed), SHAPE), draw(n, 3, seed=seed)
    weight, bias = draw(5, 12, seed=seed + 1), draw(5, seed=seed + 2)
    expected = F.linear(patch_merge(x, book, "count"), weight, bias)
    as_conv = weight.view(5, 2, 2, 3).permute(0, 3, 1, 2)
    found = sparse_conv2d.on(backend)(x, as_conv, book, bias, "count", bias_after_edge=True)
    torch.testing.assert_close(found, expected)


@BACKENDS
@NO_DEADLINE
@given(n=st.integers(0, 72), side=st.integers(1, 3), seed=NUMBERS)
def test_pixel_shuffle_is_that_of_a_dense_grid_at_the_input_cells(
    backend: str, n: int, side: int, seed: int
) -> None:
    shape = (6, 6)  # no cell is without a parent
    book = rulebook(cells_of(n, seed, shape), shape, side, side)
    assert isinstance(book.out_shape, tuple)
    x, places = draw(len(book.out_cells), 4, seed=seed), side**2
    weight, bias = draw(3 * places, 4, seed=seed + 1), draw(3 * places, seed=seed + 2)
    full = F.linear(x, weight, bias)
    dense = F.pixel_shuffle(scatter(full, book.out_cells, book.out_shape), side)
    expected = gather(dense, book.cells)
    torch.testing.assert_close(pixel_shuffle(full, book), expected)
    found = pixel_shuffle_linear.on(backend)(x, weight, book, bias)
    torch.testing.assert_close(found, expected)


def test_every_cell_expands_where_all_its_children_are_asked_for() -> None:
    coarse, x = torch.tensor([[3, 1], [0, 0]]), draw(2, 4)
    book = transpose_rulebook(coarse, children(coarse))
    assert torch.equal(pixel_shuffle(x, book), x.view(-1, 1))


CASES = {
    "conv": (sparse_conv2d, (9, 6), (4, 3, 2, 2)),
    "depthwise": (sparse_conv2d, (9, 4), (4, 1, 2, 2)),
    "two a channel": (sparse_conv2d, (9, 3), (6, 1, 2, 2)),
    "transpose": (sparse_conv_transpose2d, (None, 3), (3, 2, 2, 2)),
    "shuffle": (pixel_shuffle_linear, (None, 3), (8, 3)),
}


def case(name: str, cells: Tensor | None = None) -> tuple[Op, list[Any]]:
    """An op and its tensors, with bias."""
    op, (rows, width), weight = CASES[name]
    book = rulebook(cells_of(9) if cells is None else cells, (10, 8))
    dim = weight[1] if name == "transpose" else weight[0]
    n = len(book.out_cells) if rows is None else len(book.cells)
    return op, [draw(n, width), draw(*weight, seed=1), book, draw(dim, seed=2)]


@BACKENDS
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_right(name: str, backend: str) -> None:
    op, (x, weight, book, bias) = case(name)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    edges = ["none", "count", "partial"] if op is sparse_conv2d else [None]
    for edge in edges:
        more = {} if edge is None else {"edge": edge}

        def run(x: Tensor, weight: Tensor, bias: Tensor, more: Any = more) -> Any:
            return op.on(backend)(x, weight, book, bias, **more)

        assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("op", [patch_merge, pixel_shuffle])
def test_gradients_of_rearrangements_are_right(op: Op) -> None:
    book = rulebook(cells_of(9), SHAPE)
    n = len(book.cells if op is patch_merge else book.out_cells)
    assert torch.autograd.gradcheck(lambda x: op(x, book), draw(n, 8).requires_grad_())


def conv_inputs(
    n: int, kernel: tuple[int, int, int], widths: tuple[int, int, int], edge: str = "none"
) -> list[Any]:
    i, o, groups = widths
    book = rulebook(cells_of(n, 3, (40, 30)), (40, 30), *kernel)
    weight = draw(o * groups, i, kernel[0], kernel[0], seed=1)
    return [
        draw(n, i * groups),
        weight,
        book,
        draw(o * groups, seed=2),
        {"edge": edge, "edge_eps": 0.5},
    ]


def transpose_inputs(
    n: int, kernel: tuple[int, int, int], widths: tuple[int, int, int]
) -> list[Any]:
    i, o, groups = widths
    book = rulebook(cells_of(n, 3, (40, 30)), (40, 30), *kernel)
    x, weight = draw(len(book.out_cells), i * groups), draw(i * groups, o, kernel[0], kernel[0])
    return [x, weight, book, draw(o * groups, seed=2), {"groups": groups}]


def shuffle_inputs(n: int, side: int, width: int) -> list[Any]:
    book = rulebook(cells_of(n, 3, (40, 30)), (40, 30), side, side)
    weight, bias = draw(5 * side**2, width, seed=1), draw(5 * side**2, seed=2)
    return [draw(len(book.out_cells), width), weight, book, bias]


EVERY = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = [0, 1, 2, 37, 600]
SETTINGS = [
    *(((2, 2, 1), widths) for widths in [(33, 17, 1), (1, 1, 40), (1, 2, 9), (2, 1, 9), (3, 2, 4)]),
    *((kernel, (5, 7, 1)) for kernel in [(1, 1, 1), (3, 2, 1), (3, 3, 1), (3, 1, 2), (2, 2, 2)]),
]


@pytest.mark.parametrize(("kernel", "widths"), SETTINGS)
def test_gathered_convolution_equals_the_reference(
    kernel: tuple[int, int, int], widths: tuple[int, int, int]
) -> None:
    made = [functools.partial(conv_inputs, n, kernel, widths) for n in SIZES]
    made += [functools.partial(conv_inputs, 200, kernel, widths, e) for e in ("count", "partial")]
    check_op_backend(sparse_conv2d, "gather", *made, dtypes=EVERY)


@pytest.mark.parametrize(("kernel", "widths"), SETTINGS)
def test_gathered_transpose_equals_the_reference(
    kernel: tuple[int, int, int], widths: tuple[int, int, int]
) -> None:
    made = [functools.partial(transpose_inputs, n, kernel, widths) for n in SIZES]
    check_op_backend(sparse_conv_transpose2d, "gather", *made, dtypes=EVERY)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_gathered_shuffle_equals_the_reference(side: int) -> None:
    made = [functools.partial(shuffle_inputs, n, side, width) for n in SIZES for width in (1, 24)]
    check_op_backend(pixel_shuffle_linear, "gather", *made, dtypes=EVERY)


def test_auto_takes_the_gathered_path() -> None:
    for op in (sparse_conv2d, sparse_conv_transpose2d, pixel_shuffle_linear):
        assert [backend.name for backend in op.backends() if not op.why_not(backend)] == ["gather"]


@pytest.mark.parametrize("name", CASES)
def test_the_gathered_path_keeps_nothing_but_its_inputs(name: str) -> None:
    op, (x, weight, book, bias) = case(name, cells_of(70))
    mine = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    kept: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        op.on("gather")(x, weight, book, bias)
    assert kept <= {tensor.untyped_storage().data_ptr() for tensor in mine}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        op.on("reference")(x, weight, book, bias)
    assert not kept <= {tensor.untyped_storage().data_ptr() for tensor in mine}


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_asked_for_is_differentiated(name: str) -> None:
    op, (x, weight, book, bias) = case(name)
    both = [tensor.requires_grad_() for tensor in (x, weight)]
    slopes = torch.autograd.grad(op(x, weight, book, bias).sum(), both)
    for one, other, slope in ((0, 1, slopes[0]), (1, 0, slopes[1])):
        args = [x.detach(), weight.detach()]
        args[one] = both[one]
        assert not args[other].requires_grad
        (alone,) = torch.autograd.grad(op(*args, book, bias).sum(), args[one])
        torch.testing.assert_close(alone, slope)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_under_autocast_the_result_has_the_dtype_of_x(
    name: str, dtype: torch.dtype, backend: str
) -> None:
    op, (x, weight, book, bias) = case(name)
    expected = op.on("reference")(x, weight, book, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = [x.to(dtype), weight.float(), bias.float()]  # weights stay in single precision
        x, weight, bias = (leaf.detach().requires_grad_() for leaf in leaves)
        found = op.on(backend)(x, weight, book, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)
    found.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    assert weight.grad is not None and weight.grad.dtype == torch.float32


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype, backend: str) -> None:
    # 300 + 300 small numbers: in half precision the later positions would not count at all
    cells = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    x = torch.full((25, 1), 1.0, dtype=dtype)
    weight = torch.full((1, 1, 5, 5), 0.75, dtype=dtype)
    weight[0, 0, 0, 0] = 512.0
    found = sparse_conv2d.on(backend)(x, weight, rulebook(cells, (5, 5), 5, 5))
    assert found.item() == torch.tensor(512 + 24 * 0.75, dtype=dtype).item()


@BACKENDS
def test_islands_far_apart_are_convolved_as_if_alone(backend: str) -> None:
    island = cells_of(20) + 12
    both = torch.cat([island, island + FAR])
    x, weight = draw(20, 3), draw(4, 3, 3, 3, seed=1)
    near, far = rulebook(island, (30, 30), 3, 2), rulebook(both, (2 * FAR, 2 * FAR), 3, 2)
    conv, back = sparse_conv2d.on(backend), sparse_conv_transpose2d.on(backend)
    alone, found = conv(x, weight, near), conv(torch.cat([x, 2 * x]), weight, far)
    torch.testing.assert_close(found, torch.cat([alone, 2 * alone]))
    fine = back(alone, weight, near)
    torch.testing.assert_close(back(found, weight, far), torch.cat([fine, 2 * fine]))


@BACKENDS
def test_packed_slides_are_convolved_as_one_by_one(backend: str) -> None:
    shapes = [(9, 8), (5, 7), (4, 4)]  # of which two have rows or columns behind the last kernel
    parts = [cells_of(n, n, shape) for n, shape in zip((40, 0, 11), shapes, strict=True)]
    origins = torch.tensor([[0, 0], [10, 0], [16, 0]])
    grids = Grids(torch.tensor(shapes), origins, torch.tensor([0, 40, 40, 51]))
    packed = torch.cat([cells + at for cells, at in zip(parts, origins, strict=True)])
    x, weight, bias = draw(51, 3), draw(4, 3, 2, 2, seed=1), draw(4, seed=2)
    conv = functools.partial(sparse_conv2d.on(backend), bias=bias, edge="count")
    alone = [
        conv(rows, weight, rulebook(cells, shape))
        for rows, cells, shape in zip(x.split([40, 0, 11]), parts, shapes, strict=True)
    ]
    torch.testing.assert_close(conv(x, weight, rulebook(packed, grids)), torch.cat(alone))


X, BOOK = draw(9, 6), rulebook(cells_of(9), SHAPE)
COARSE = draw(len(BOOK.out_cells), 6)


@BACKENDS
@pytest.mark.parametrize(
    ("x", "weight", "more", "message"),
    [
        (X[1:], (4, 6, 2, 2), {}, r"sparse_conv2d got x \(8, 6\) for 9 cells, expected \(9, width"),
        (X[None], (4, 6, 2, 2), {}, r"got x \(1, 9, 6\) for 9 cells"),
        (X, (4, 6, 3, 3), {}, r"weight \(4, 6, 3, 3\), .* the rulebook's kernel \(2, 2\)"),
        (X, (4, 24), {}, r"weight \(4, 24\), expected four dimensions"),
        (X, (4, 4, 2, 2), {}, r"x of width 6 and weight \(4, 4, 2, 2\), .* groups that divide"),
        (X, (4, 7, 2, 2), {}, r"x of width 6 and weight \(4, 7, 2, 2\)"),
        (X, (4, 0, 2, 2), {}, r"x of width 6 and weight \(4, 0, 2, 2\)"),
        (X, (4, 2, 2, 2), {}, r"x of width 6 and weight \(4, 2, 2, 2\)"),
        (X, (4, 6, 2, 2), {"bias": draw(5)}, r"sparse_conv2d got bias \(5,\), expected \(4,\)"),
        (X, (4, 6, 2, 2), {"edge": "counts"}, "edge is 'counts'. Did you mean 'count'"),
        (X, (4, 6, 2, 2), {"edge": "mean of all"}, "Known: count, none, partial"),
    ],
)
def test_what_does_not_fit_a_convolution_is_refused(
    x: Tensor, weight: tuple[int, ...], more: dict[str, Any], message: str, backend: str
) -> None:
    with pytest.raises(DataError, match=message):
        sparse_conv2d.on(backend)(x, draw(*weight), BOOK, **more)


@BACKENDS
@pytest.mark.parametrize(
    ("x", "weight", "more", "message"),
    [
        (X, (6, 4, 2, 2), {}, r"transpose2d got x \(9, 6\) for \d cells"),
        (COARSE, (6, 4, 1, 2), {}, r"the rulebook's kernel \(2, 2\)"),
        (COARSE, (4, 6, 2, 2), {}, r"x of width 6, weight \(4, 6, 2, 2\), 1 groups; expected"),
        (COARSE, (6, 4, 2, 2), {"groups": 4}, r"4 groups; expected .* groups that divide width"),
        (COARSE, (6, 4, 2, 2), {"groups": 0}, r"0 groups; expected"),
        (COARSE, (6, 4, 2, 2), {"groups": 2, "bias": draw(4)}, r"bias \(4,\), expected \(8,\)"),
    ],
)
def test_what_does_not_fit_a_transposed_convolution_is_refused(
    x: Tensor, weight: tuple[int, ...], more: dict[str, Any], message: str, backend: str
) -> None:
    with pytest.raises(DataError, match=message):
        sparse_conv_transpose2d.on(backend)(x, draw(*weight), BOOK, **more)


@BACKENDS
def test_what_does_not_fit_a_shuffle_is_refused(backend: str) -> None:
    run = pixel_shuffle_linear.on(backend)
    with pytest.raises(DataError, match=r"pixel_shuffle_linear got x \(9, 6\) for \d cells"):
        run(X, draw(8, 6), BOOK)
    with pytest.raises(DataError, match=r"x of width 6 and weight \(8, 5\), expected \(C s\^2"):
        run(COARSE, draw(8, 5), BOOK)
    with pytest.raises(DataError, match="6 channels cannot be shuffled into 2 x 2 cells"):
        run(COARSE, draw(6, 6), BOOK)
    with pytest.raises(DataError, match=r"bias \(4,\), expected \(8,\)"):
        run(COARSE, draw(8, 6), BOOK, draw(4))
    overlapping = rulebook(cells_of(9), SHAPE, 3, 2)
    with pytest.raises(DataError, match="does not give each cell one parent"):
        run(draw(len(overlapping.out_cells), 6), draw(9, 6), overlapping)


def test_what_does_not_fit_a_rearrangement_is_refused() -> None:
    with pytest.raises(DataError, match=r"patch_merge got x \(8, 6\) for 9 cells"):
        patch_merge(X[1:], BOOK)
    with pytest.raises(DataError, match="edge is 'all'"):
        patch_merge(X, BOOK, "all")
    with pytest.raises(DataError, match=r"pixel_shuffle got x \(9, 6\)"):
        pixel_shuffle(X, BOOK)
    with pytest.raises(DataError, match=r"6 channels cannot be shuffled .* a multiple of 4"):
        pixel_shuffle(COARSE, BOOK)
