"""wsizoo.diagnosis: a model whose attention is known, listened to and measured."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsizoo.bag import Bag
from wsizoo.diagnosis.attention import Asked, diagnose_attention, diagnose_bag, window
from wsizoo.diagnosis.layers import attention_layers
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Aggregated, Aggregator
from wsizoo.mil.pooling import MeanPooling
from wsizoo.model import SlideModel
from wsizoo.ops import Disk, Everywhere, grid_attention
from wsizoo.slides.store import write_bag
from wsizoo.spec import ModelSpec

SPEC = ModelSpec(summary="s", licence="MIT", source="x")
DIM, SIDE, SPACING = 4, 12, 224.0


class Block(nn.Module):
    """Two heads; a map after the attention, so that another module ends first."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, neighbourhood: Any) -> Tensor:
        q = self.queries(x).unflatten(-1, (2, -1))
        mixed: Tensor = grid_attention(q, q, q, neighbourhood)
        out: Tensor = self.out(mixed.flatten(1))
        return out


class LocalGlobal(Aggregator):
    """A disk of radius 2, a disk of radius 3 in the same module, then 2 x 2 patches everywhere."""

    uses_coords = True

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.local, self.far = Block(), Block()

    def forward(self, bag: Bag) -> Aggregated:
        cells = bag.grid() - bag.grid().amin(0)
        x = self.local(bag.features, Disk(cells, 2.0))
        x = self.local(x, Disk(cells, 3.0))
        pooled, at = torch.unique(cells // 2, dim=0, return_inverse=True)
        tokens = x.new_zeros(len(pooled), DIM).index_add_(0, at, x)
        tokens = self.far(tokens, Everywhere(pooled, torch.tensor([0, len(pooled)])))
        return Aggregated(slide=tokens.mean(0))


def model(aggregator: Aggregator | None = None, **fields: Any) -> SlideModel:
    torch.manual_seed(0)
    made = aggregator or LocalGlobal()
    return SlideModel("toy", SPEC, DIM, aggregator=made, **fields).eval()


def square(side: int = SIDE, **fields: Any) -> Bag:
    """side x side patches whose rows are shuffled, somewhere on the slide."""
    draw = torch.Generator().manual_seed(1)
    at = torch.randperm(side**2, generator=draw)
    cells = torch.stack([at % side, at // side], 1) + torch.tensor([31, 7])
    features = torch.randn(side**2, DIM, generator=draw)
    fields = {"mpp": 0.5, "slide_id": "A1", **fields}
    return Bag(features, (cells * SPACING).long(), spacing=SPACING, **fields)


def test_every_call_of_the_op_is_a_layer_with_the_module_that_made_it() -> None:
    toy = model()
    layers = attention_layers(toy, square())
    assert [layer.name for layer in layers] == [
        "aggregator.local", "aggregator.local, 2", "aggregator.far",
    ]  # fmt: skip
    assert [layer.weights.shape for layer in layers] == [(2, 144, 144)] * 2 + [(2, 36, 36)]
    assert [layer.unit for layer in layers] == [1, 1, 2]
    for layer in layers:
        assert layer.weights.dtype == np.float64
        assert np.allclose(layer.weights.sum(-1), 1, atol=1e-12)
        assert ((layer.weights > 0) == layer.allowed).all()
        raster = layer.cells[:, 1] * 1000 + layer.cells[:, 0]
        assert (np.diff(raster) > 0).all()
    assert not any(module._forward_hooks for module in toy.modules())


class Masked(Aggregator):
    """Everywhere, but the first of two heads has a bias of minus infinity beyond 2 patches."""

    uses_coords = True

    def forward(self, bag: Bag) -> Aggregated:
        x = bag.features.unflatten(-1, (2, -1))

        def far(offset: Tensor) -> Tensor:
            beyond = offset.square().sum(-1) > 4
            return torch.stack([torch.where(beyond, -torch.inf, -1.0), -9.0 * beyond])

        among = Everywhere(bag.grid(), torch.tensor([0, len(bag)]))
        return Aggregated(slide=grid_attention(x, x, x, among, far).flatten(1).mean(0))


def test_a_bias_of_minus_infinity_is_a_mask_of_that_head_alone() -> None:
    first, second = diagnose_bag(model(Masked(DIM, DIM)), square()).heads
    assert (first.plane.rank, first.plane.holds) == (120, True)
    assert (second.plane.rank, second.plane.holds) == (1, True)


def test_the_numbers_of_a_square_are_those_of_its_disks() -> None:
    found = diagnose_bag(model(), square(), Asked(radius=2.0))
    assert (found.patches, found.window, found.um) == (144, 144, 112.0)
    assert [(h.layer, h.head) for h in found.heads] == [(i, j) for i in range(3) for j in (0, 1)]
    first, _, second, _, third, _ = found.heads
    assert [(b.rank, b.holds) for b in (first.plane, first.band)] == [(120, True), (120, True)]
    assert (second.plane.rank, second.plane.holds) == (108, True)
    assert (third.plane.rank, third.band.rank) == (1, 1)
    assert first.within == pytest.approx(1) and second.within < 0.95
    assert first.plane.rank <= first.rank <= 144
    assert third.distance > second.distance > first.distance > 1
    assert third.row(112.0)["distance_um"] == pytest.approx(third.distance * 112, rel=1e-3)
    for head in found.heads:
        assert head.reached.sum() == pytest.approx(1)
        assert head.spectrum[0] == 1 and (np.diff(head.spectrum) <= 0).all()


def test_equal_weights_have_the_distance_that_is_counted_by_hand() -> None:
    toy = model()
    assert isinstance(toy.aggregator, LocalGlobal)
    nn.init.zeros_(toy.aggregator.local.queries.weight)  # all scores equal
    bag = square(1 + 2 * 8)  # the middle patch sees a whole disk
    (layer, *_) = attention_layers(toy, bag)
    middle = int(((layer.cells - layer.cells.mean(0)) ** 2).sum(1).argmin())
    weights = layer.weights[0, middle]
    apart = np.hypot(*(layer.cells - layer.cells[middle]).T)
    assert weights[weights > 0] == pytest.approx(np.full(13, 1 / 13))
    by_hand = (4 * 1 + 4 * 2**0.5 + 4 * 2) / 13
    assert (weights * apart).sum() == pytest.approx(by_hand)


def test_a_large_slide_is_seen_through_a_window_around_its_centre_or_a_patch() -> None:
    bag = square()
    rows, patch = window(bag, 9)
    assert len(rows) == 9 and patch in rows.tolist()
    middle = bag.grid()[rows] - bag.grid().amin(0)
    assert middle.amin(0).tolist() in ([4, 4], [5, 5], [4, 5], [5, 4])
    corner = int((bag.grid() - bag.grid().amin(0)).sum(1).argmin())
    rows, patch = window(bag, 4, corner)
    assert patch == corner
    assert sorted((bag.grid()[rows] - bag.grid().amin(0)).tolist())[:2] == [[0, 0], [0, 1]]
    found = diagnose_bag(model(), bag, Asked(max_patches=50, patch=corner))
    assert (found.window, found.patches, found.patch) == (50, 144, corner)
    assert found.heads[0].tokens == 50
    with pytest.raises(DataError, match=r"slide 'A1' has no patch 144, expected 0 to 143"):
        window(bag, 9, 144)


def test_the_map_is_of_the_patch_and_of_the_cell_that_holds_it() -> None:
    bag = square()
    at = (bag.grid() - bag.grid().amin(0)).tolist().index([7, 2])
    found = diagnose_bag(model(), bag, Asked(patch=at))
    cells = [seen.cells[seen.query].tolist() for seen in found.seen]
    assert cells == [[7, 2], [7, 2], [3, 1]]
    assert [round(float(seen.weights.sum()), 9) for seen in found.seen] == [1, 1, 1]


def write(folder: Path, **fields: Any) -> Path:
    bag = square(encoder=Fingerprint("made-up"), **fields)
    return write_bag(bag, folder / f"{bag.slide_id}.h5")


def test_table_numbers_and_page_say_the_same(tmp_path: Path) -> None:
    files = [write(tmp_path, slide_id=name) for name in ("A1", "A2")]
    ticks: list[tuple[str, int, int]] = []
    told: list[str] = []
    results = diagnose_attention(
        model(),
        files,
        tmp_path / "out",
        max_patches=60,
        progress=lambda *tick: ticks.append(tick),
        after_slide=lambda one: told.append(one.slide_id),
    )
    assert told == ["A1", "A2"] and ticks[-1] == ("A2, layer 2", 6, 6)
    with open(tmp_path / "out" / "attention.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(r["slide"], r["layer"], r["head"]) for r in table] == [
        (s, str(i), str(j)) for s in ("A1", "A2") for i in range(3) for j in range(2)
    ]
    content = json.loads((tmp_path / "out" / "attention.json").read_text())
    (first, _) = content["slides"]
    assert (first["patches"], first["window"], first["um"]) == (144, 60, 112.0)
    assert len(first["heads"][0]["singular_values"]) == 60
    assert float(table[0]["effective_rank"]) == first["heads"][0]["effective_rank"]
    assert str(first["heads"][0]["bound_2d"]) == table[0]["bound_2d"]
    assert results[0].heads[0].rank == first["heads"][0]["rank"]
    page = (tmp_path / "out" / "attention.html").read_text()
    for words in ("random weights", "has full rank nearly always", "window of 60 of 144 patches"):
        assert words in page
    assert page.count("<svg") == 2 * 3 * 2 and page.count("<img") == 2


def test_a_slide_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    files = [write(tmp_path, slide_id="A1"), write(tmp_path, slide_id="A2")]
    files[0].write_bytes(b"no features")
    results = diagnose_attention(model(), files, tmp_path / "out")
    assert [bool(one.reason) for one in results] == [True, False]
    page = (tmp_path / "out" / "attention.html").read_text()
    assert "1 of 2 slides" in page and "Failed" in page
    alone = diagnose_attention(model(), files[:1], tmp_path / "none")
    assert alone[0].reason and (tmp_path / "none" / "attention.csv").read_text() == "slide\n"


def test_features_of_another_encoder_are_refused_unless_forced(tmp_path: Path) -> None:
    uni = model(requires=Fingerprint("uni"))
    file = write(tmp_path)
    (found,) = diagnose_attention(uni, file)
    assert "'toy'" in found.reason and "made-up" in found.reason
    (found,) = diagnose_attention(uni, file, force=True)
    assert found.reason == "" and len(found.heads) == 6


def test_a_model_without_attention_says_which_models_have_it(tmp_path: Path) -> None:
    mean = model(MeanPooling(DIM, 4))
    with pytest.raises(
        DataError, match=r"'toy' computes no attention.* longmil-v1, full-attention"
    ):
        diagnose_attention(mean, write(tmp_path))
    assert attention_layers(mean, square()) == []


def test_slides_are_no_features(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.svs' is no feature file: first wsizoo extract"):
        diagnose_attention(model(), tmp_path / "a.svs")


def test_attention_that_is_not_finite_is_an_error() -> None:
    toy = model()
    assert isinstance(toy.aggregator, LocalGlobal)
    nn.init.constant_(toy.aggregator.far.queries.weight, math.nan)
    with pytest.raises(
        DataError, match=r"slide 'A1': the attention of 'aggregator.far' is not fin"
    ):
        diagnose_bag(toy, square())


def test_a_single_patch_attends_to_itself() -> None:
    found = diagnose_bag(model(), square(1))
    assert [(h.rank, h.effective_rank, h.distance) for h in found.heads] == [(1, 1.0, 0.0)] * 6
