"""Temporary: what the core's sparse convolutions will be."""
# mypy: ignore-errors

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Rulebook:
    kernel: int
    stride: int
    dilation: int
    cells: torch.Tensor
    out_cells: torch.Tensor
    pairs: tuple
    out_shape: object = None
    out_offsets: object = None
    out_origins: object = None

    @functools.cached_property
    def counts(self):
        n = torch.zeros(len(self.out_cells), dtype=torch.int64)
        for _, o in self.pairs:
            n.index_add_(0, o, torch.ones_like(o))
        return n

    @functools.cached_property
    def parents(self):
        assert self.kernel == self.stride and self.dilation == 1
        p = torch.full((len(self.cells),), -1)
        for i, o in self.pairs:
            p[i] = o
        return p

    @functools.cached_property
    def position(self):
        p = torch.full((len(self.cells),), -1)
        for k, (i, _) in enumerate(self.pairs):
            p[i] = k
        return p


def rulebook(cells, shape, kernel=2, stride=2, dilation=1, offsets=None, origins=None):
    sizes = torch.as_tensor(shape).view(-1, 2)
    out_sizes = (sizes - dilation * (kernel - 1) - 1) // stride + 1
    if origins is None:
        origins, offsets = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([0, len(cells)])
    seg = torch.repeat_interleave(torch.arange(len(sizes)), offsets.diff())
    own = cells - origins[seg]
    found = []
    for i in range(kernel):
        for j in range(kernel):
            top = own - torch.tensor([i, j]) * dilation
            out = top // stride
            ok = (top % stride == 0).all(1) & (top >= 0).all(1) & (out < out_sizes[seg]).all(1)
            rows = ok.nonzero()[:, 0]
            found.append((rows, seg[rows], out[rows]))
    width = int(out_sizes[:, 1].max()) + 1
    height = int(out_sizes[:, 0].max()) + 1
    keys = [(s * height + o[:, 0]) * width + o[:, 1] for _, s, o in found]
    uniq, inverse = torch.unique(torch.cat(keys), return_inverse=True)
    parts = inverse.split([len(k) for k in keys])
    out_seg = uniq // (height * width)
    out_own = torch.stack([uniq // width % height, uniq % width], 1)
    out_origins = origins // stride
    return Rulebook(
        kernel,
        stride,
        dilation,
        cells,
        out_own + out_origins[out_seg],
        tuple((f[0], p) for f, p in zip(found, parts, strict=True)),
        out_sizes,
        torch.searchsorted(out_seg, torch.arange(len(sizes) + 1)),
        out_origins,
    )


def sparse_conv2d(
    x, weight, book, bias=None, edge="none", edge_eps=1e-6, bias_after_edge=False
):
    out_c, in_g = weight.shape[:2]
    groups = x.shape[1] // in_g
    y = x.new_zeros(len(book.out_cells), out_c)
    den = x.new_zeros(len(book.out_cells), out_c)
    for p, (i, o) in enumerate(book.pairs):
        w = weight.flatten(2)[..., p]
        xs = x[i].view(len(i), groups, in_g)
        ws = w.view(groups, out_c // groups, in_g)
        y = y.index_add(0, o, torch.einsum("tgi,goi->tgo", xs, ws).reshape(len(i), out_c))
        den = den.index_add(0, o, w.abs().sum(1).expand(len(i), -1))
    if bias is not None and not bias_after_edge:
        y = y + bias
    if edge == "count":
        y = y / book.counts[:, None]
    if edge == "partial":
        y = y / den.clamp(min=edge_eps)
    if bias is not None and bias_after_edge:
        y = y + bias
    return y


def sparse_conv_transpose2d(x, weight, book, bias=None):
    in_c, out_g = weight.shape[:2]
    groups = getattr(book, "groups", None) or 1
    y = None
    for p, (i, o) in enumerate(book.pairs):
        w = weight.flatten(2)[..., p]
        raise NotImplementedError
    return y


def patch_merge(x, book, edge="none"):
    y = x.new_zeros(len(book.out_cells), 4, x.shape[1])
    for p, (i, o) in enumerate(book.pairs):
        y[:, p] = y[:, p].index_add(0, o, x[i])
    y = y.flatten(1)
    return y if edge == "none" else y / book.counts[:, None]


def pixel_shuffle(x, book):
    s2 = book.stride**2
    return x.view(len(x), -1, s2)[book.parents, :, book.position]
