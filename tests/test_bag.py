from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.bag import CONCAT_GAP, Bag, BagBatch
from wsizoo.errors import BagError, FingerprintError
from wsizoo.fingerprint import Fingerprint

CELLS = st.lists(
    st.tuples(st.integers(-50_000, 50_000), st.integers(-50_000, 50_000)), min_size=1, max_size=20
)


def bag(n: int = 5, dim: int = 4, spacing: float | None = 10.5, **fields: Any) -> Bag:
    """n patches in a column of two, at level-0 (100, 200) and beyond."""
    cells = torch.stack([torch.arange(n) % 2, torch.arange(n) // 2], 1)
    coords = torch.round(cells * (spacing or 1.0)).long() + torch.tensor([105, 210])
    given: dict[str, Any] = {"coords": coords, "spacing": spacing, "slide_id": "A1", "mpp": 0.25}
    return Bag(torch.arange(n * dim).reshape(n, dim).float(), **{**given, **fields})


FEATURES = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": [[1.0]]}, r"A1: features are a list, expected a torch tensor"),
        ({"features": np.zeros((3, 4))}, r"features are a ndarray, .*torch\.as_tensor\(features\)"),
        (
            {"features": torch.zeros(4)},
            r"A1: features are \(4,\) torch\.float32, expected \(N, D\)",
        ),
        ({"features": torch.zeros(1, 3, 4)}, r"features are \(1, 3, 4\)"),
        ({"features": torch.zeros(3, 4).long()}, r"features are \(3, 4\) torch\.int64"),
        ({"features": torch.zeros(3, 3, 8, 8)}, r"\(3, 3, 8, 8\) torch\.float32, .*uint8"),
        ({"features": torch.zeros(3, 8, 8, 3, dtype=torch.uint8)}, r"\(3, 8, 8, 3\) torch\.uint8"),
        (
            {"coords": torch.zeros(3, 2)},
            r"A1: coords are \(3, 2\) torch\.float32, expected \(3, 2\)",
        ),
        (
            {"coords": torch.zeros(4, 2).long()},
            r"A1: coords are \(4, 2\) torch\.int64, expected \(3",
        ),
        ({"coords": torch.zeros(3, 3).long()}, r"coords are \(3, 3\)"),
        ({"coords": np.zeros((3, 2), np.int64)}, r"coords are ndarray, .*coords\.round\(\)\.long"),
        ({"spacing": 0.0}, r"A1: spacing is 0\.0, expected a positive number"),
        ({"spacing": float("nan")}, r"spacing is nan"),
        ({"footprint": -1.0}, r"footprint is -1\.0"),
        ({"mpp": float("inf")}, r"mpp is inf"),
        ({"parts": torch.tensor([0, 2])}, r"A1: parts are \[0, 2\], expected 0 to 3 ascending"),
        ({"parts": torch.tensor([0, 3, 2, 3])}, r"parts are \[0, 3, 2, 3\]"),
        ({"parts": torch.tensor([1, 3])}, r"parts are \[1, 3\]"),
        ({"parts": torch.tensor([])}, r"parts are \[\]"),
    ],
)
def test_what_does_not_fit_together_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BagError, match=message):
        Bag(**{"features": FEATURES, "slide_id": "A1", **fields})


def test_features_alone_make_a_bag() -> None:
    made = Bag(FEATURES)
    assert (len(made), made.dim, made.device.type, made.slide_id) == (3, 4, "cpu", "bag")
    assert made.footprint is None


def test_pixels_make_a_bag_of_three_channels() -> None:
    made = Bag(torch.zeros(2, 3, 8, 16, dtype=torch.uint8))
    assert (len(made), made.dim) == (2, 3)
    assert made.to(dtype=torch.float16) is made


def test_a_patch_is_as_wide_as_its_spacing_unless_it_says_otherwise() -> None:
    assert bag().footprint == 10.5
    assert bag(footprint=20.0).footprint == 20.0


def test_an_encoder_given_by_name_is_declared() -> None:
    made = Bag(FEATURES, encoder="uni")  # type: ignore[arg-type]
    assert made.encoder == Fingerprint("uni", declared=True)


def test_a_bag_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        bag().features = FEATURES  # type: ignore[misc]


def test_moving_changes_float_features_only() -> None:
    moved = bag().to(dtype=torch.float64)
    assert moved.features.dtype == torch.float64
    assert moved.coords is not None and moved.coords.dtype == torch.int64
    assert moved.to(dtype=torch.float64) is moved
    meta = bag().to("meta")
    assert meta.coords is not None
    assert (meta.device.type, meta.coords.device.type) == ("meta", "meta")


def test_a_subset_takes_coords_and_patch_labels_along() -> None:
    index = torch.tensor([4, 0])
    whole = bag(target={"label": 1, "instances": [0, 1, 2, 3, 4]}, parts=torch.tensor([0, 2, 5]))
    some = whole.subset(index)
    assert some.coords is not None and whole.coords is not None and some.target is not None
    assert torch.equal(some.features, whole.features[index])
    assert torch.equal(some.coords, whole.coords[index])
    assert some.target["label"] == 1 and some.target["instances"].tolist() == [4, 0]
    assert some.parts is None


@given(CELLS, st.floats(1.5, 4096, exclude_min=True))
def test_the_grid_of_rounded_coords_is_lossless(
    cells: list[tuple[int, int]], spacing: float
) -> None:
    wanted = torch.tensor(cells)
    coords = torch.round(wanted.double() * spacing).long()
    made = Bag(torch.zeros(len(cells), 1), coords, spacing=spacing)
    assert torch.equal(made.grid(), wanted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coords": None}, r"A1 has no coords, so no grid\. Make it with Bag\(features, coords=xy"),
        ({"spacing": None}, r"A1 has no spacing, so no grid"),
    ],
)
def test_a_bag_without_coords_or_spacing_has_no_grid(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BagError, match=message):
        bag(**fields).grid()


@given(CELLS)
def test_shared_cells_are_found_exactly_when_there_are_any(cells: list[tuple[int, int]]) -> None:
    coords = torch.tensor(cells) * 7
    made = Bag(torch.zeros(len(cells), 1), coords, spacing=7.0)
    if len(set(cells)) == len(cells):
        assert torch.equal(made.require_unique_cells(), torch.tensor(cells))
    else:
        with pytest.raises(BagError, match="share a grid cell with another, first patches"):
            made.require_unique_cells()


def test_shared_cells_are_named() -> None:
    coords = torch.tensor([[0, 0], [20, 10], [9, 0], [21, 11]])
    made = Bag(torch.zeros(4, 1), coords, spacing=10.0, slide_id="A1")
    with pytest.raises(
        BagError,
        match=r"A1: 1 patches share a grid cell with another, first patches 1 and 3 in cell "
        r"\(2, 1\) \(spacing 10\.0\); wsizoo convert FILE FOLDER --collisions nearest",
    ):
        made.require_unique_cells()


def test_an_empty_bag_has_an_empty_grid() -> None:
    empty = Bag(torch.zeros(0, 3), torch.zeros(0, 2).long(), spacing=2.0)
    assert empty.require_unique_cells().shape == (0, 2)


class TestConcat:
    """The slides of a patient as one bag."""

    def test_cells_are_disjoint_and_each_slide_keeps_its_geometry(self) -> None:
        slides = [bag(5), bag(4, spacing=10.52, slide_id="A2"), bag(1, slide_id="A3")]
        joined = Bag.concat(slides)
        assert joined.parts is not None and joined.parts.tolist() == [0, 5, 9, 10]
        assert joined.slide_id == "A1+A2+A3"
        cells = joined.require_unique_cells()
        for slide, a, b in zip(slides, [0, 5, 9], [5, 9, 10], strict=True):
            own = slide.grid()
            assert torch.equal(joined.features[a:b], slide.features)
            assert torch.equal(cells[a:b] - cells[a], own - own[0])

    @given(CELLS, CELLS, st.floats(2, 300))
    def test_slides_lie_a_gap_apart(
        self, one: list[tuple[int, int]], two: list[tuple[int, int]], spacing: float
    ) -> None:
        slides = [
            Bag(
                torch.zeros(len(cells), 1),
                torch.round(torch.tensor(cells).double() * spacing).long(),
                spacing=spacing,
            )
            for cells in (one, two)
        ]
        cells = Bag.concat(slides).grid()
        first, second = cells[: len(one)], cells[len(one) :]
        assert int(second[:, 0].min() - first[:, 0].max()) == CONCAT_GAP + 1
        assert int(first.min()) == 0 and int(second[:, 1].min()) == 0

    def test_one_slide_stays_where_it_is(self) -> None:
        slide = bag()
        alone = Bag.concat([slide])
        assert alone.coords is slide.coords
        assert alone.parts is not None and alone.parts.tolist() == [0, 5]

    def test_slides_without_coords_are_joined_without(self) -> None:
        joined = Bag.concat([Bag(torch.zeros(2, 3)), Bag(torch.ones(1, 3))])
        assert joined.coords is None and joined.features[:, 0].tolist() == [0, 0, 1]

    def test_empty_slides_take_no_room(self) -> None:
        empty = Bag(torch.zeros(0, 4), torch.zeros(0, 2).long(), spacing=10.5)
        joined = Bag.concat([bag(2), empty, bag(2)])
        assert joined.parts is not None and joined.parts.tolist() == [0, 2, 2, 4]
        assert joined.grid()[2, 0] == CONCAT_GAP + 2

    def test_what_is_known_of_any_slide_is_kept(self) -> None:
        made = Fingerprint("uni")
        joined = Bag.concat([bag(), bag(encoder=made, target={"label": 1})])
        assert joined.encoder == made and joined.target == {"label": 1}
        assert Bag.concat([bag(), bag()]).target is None

    def test_patch_labels_are_joined_where_every_slide_has_them(self) -> None:
        one = bag(2, target={"label": 1, "instances": torch.tensor([0, 1])})
        two = bag(1, target={"label": 1, "instances": [2]})
        joined = Bag.concat([one, two]).target
        assert joined is not None and joined["instances"].tolist() == [0, 1, 2]
        assert Bag.concat([one, bag(1)]).target == {"label": 1}

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            (
                bag(dim=6, slide_id="A2"),
                r"A1 and A2 have features of different shape, \(4,\) and \(",
            ),
            (bag(coords=None, slide_id="A2"), r"A1 and A2: only one of them has coords"),
            (bag(spacing=None, slide_id="A2"), r"A2 has no spacing, so no grid"),
            (
                bag(mpp=0.5, slide_id="A2"),
                r"patches of A1 are 2\.6 um wide, those of A2 5\.2 um: extract both at one scale",
            ),
            (
                bag(target={"label": 0}, slide_id="A2"),
                r"A2: label is 0, another slide of this patient has 1",
            ),
        ],
    )
    def test_slides_that_do_not_fit_are_named(self, second: Bag, message: str) -> None:
        with pytest.raises(BagError, match=message):
            Bag.concat([bag(target={"label": 1}), second])

    def test_the_scale_may_differ_where_patches_are_as_wide(self) -> None:
        assert len(Bag.concat([bag(), bag(mpp=0.125, footprint=21.0, spacing=21.0)])) == 10

    def test_slides_of_different_encoders_are_refused(self) -> None:
        slides = [bag(), bag(encoder=Fingerprint("uni")), bag(encoder=Fingerprint("conch"))]
        with pytest.raises(FingerprintError, match="differently: encoder uni and conch"):
            Bag.concat(slides)

    def test_no_slides_are_an_error(self) -> None:
        with pytest.raises(BagError, match=r"Bag\.concat needs at least one bag"):
            Bag.concat([])


class TestSharedGrid:
    """The grid of a bag is computed once."""

    def test_it_is_the_same_tensor_and_a_changed_bag_has_its_own(self) -> None:
        one = bag(6)
        assert one.grid() is one.grid()
        assert one.coords is not None
        moved = one.replace(coords=one.coords + 2 * int(one.spacing or 0))
        assert torch.equal(moved.grid(), one.grid() + 2)

    def test_one_made_without_gradients_serves_training_later(self) -> None:
        one = bag(6)
        with torch.inference_mode():
            one.grid()
        assert not one.grid().is_inference()
        rows = torch.randn(100, 2, requires_grad=True)
        rows[one.grid()[:, 0] % 100].sum().backward()


class TestPack:
    """Slides packed end to end."""

    def test_a_batch_knows_whose_rows_are_whose(self) -> None:
        batch = BagBatch.pack([bag(2), bag(0), bag(3)])
        assert batch.offsets.tolist() == [0, 2, 2, 5]
        assert batch.lengths.tolist() == [2, 0, 3]
        assert batch.segments.tolist() == [0, 0, 2, 2, 2]
        assert len(batch) == 3 and [len(b) for b in batch] == [2, 0, 3]

    def test_a_batch_knows_its_cells(self) -> None:
        batch = BagBatch.pack([bag(2), bag(3)])
        cells = batch.cells()
        assert cells.dtype == torch.int64 and cells.shape == (5, 2)
        assert torch.equal(cells, torch.cat([bag(2).grid(), bag(3).grid()]))
        with pytest.raises(BagError, match="has no coords, so no grid"):
            BagBatch.pack([bag(2), bag(3, coords=None)]).cells()

    def test_the_slides_of_a_batch_are_views_of_it(self) -> None:
        batch = BagBatch.pack([bag(2), bag(3, slide_id="A2")])
        assert batch[1].slide_id == "A2" and batch.coords is not None
        assert batch[1].features.data_ptr() == batch.features[2:].data_ptr()
        assert batch[1].coords is not None
        assert batch[1].coords.data_ptr() == batch.coords[2:].data_ptr()
        assert torch.equal(batch[1].features, bag(3).features)

    def test_coords_of_some_slides_stay_with_them(self) -> None:
        batch = BagBatch.pack([bag(2), bag(3, coords=None)])
        assert batch.coords is None
        assert batch[0].coords is not None and batch[1].coords is None

    def test_moving_a_batch_keeps_views(self) -> None:
        batch = BagBatch.pack([bag(2), bag(3)])
        assert batch.to("cpu", torch.float32) is batch
        moved = batch.to(dtype=torch.float64)
        assert moved.features.dtype == torch.float64
        assert moved[1].features.data_ptr() == moved.features[2:].data_ptr()
        meta = BagBatch.pack([bag(2), bag(1, coords=None)]).to("meta")
        assert meta.offsets.device.type == "meta" and meta[0].coords is not None
        assert meta[0].coords.device.type == "meta"

    def test_slides_of_different_widths_do_not_pack(self) -> None:
        with pytest.raises(BagError, match=r"A1 and A2 have features of different shape, \(4,\)"):
            BagBatch.pack([bag(), bag(dim=5, slide_id="A2")])

    def test_no_slides_do_not_pack(self) -> None:
        with pytest.raises(BagError, match=r"BagBatch\.pack needs at least one bag"):
            BagBatch.pack([])
