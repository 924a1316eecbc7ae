import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wsizoo
from wsizoo.encoders.batches import BatchEncoder, check_features
from wsizoo.encoders.builtin import Pixels
from wsizoo.encoders.loading import build_encoder
from wsizoo.errors import BackendError, DataError


class Toy(wsizoo.Encoder):
    """A linear map of mean colours; notes what it was given."""

    name, dim, mpp, patch_size, precision = "toy", 4, 0.5, 8, "fp16"

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.sizes: list[int] = []
        self.fits = 10**9

    def forward(self, patches: Tensor) -> Tensor:
        self.sizes.append(len(patches))
        if len(patches) > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return self.linear(patches.float().mean((2, 3)) / 255)


@pytest.fixture
def patches() -> Any:
    return np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def test_patches_become_features_on_the_cpu(patches: Any) -> None:
    toy = Toy().train()
    encode = BatchEncoder(toy)
    features = encode(patches)
    expected = toy(torch.from_numpy(patches).permute(0, 3, 1, 2))
    assert features.shape == (10, 4) and features.dtype == torch.float32
    assert torch.equal(features, expected) and not features.requires_grad
    assert not toy.training
    assert torch.equal(encode(patches), features)
    assert (encode.precision, encode.device, encode.most) == ("fp32", torch.device("cpu"), None)


def test_memory_of_any_kind_is_read(patches: Any) -> None:
    encode = BatchEncoder(Toy())
    expected = encode(patches)
    locked = patches.copy()
    locked.setflags(write=False)
    flipped = np.ascontiguousarray(patches[:, ::-1])[:, ::-1]
    assert torch.equal(encode(locked), expected)
    assert torch.equal(encode(flipped), expected)


def test_no_patches_give_no_features(patches: Any) -> None:
    toy = Toy()
    features = BatchEncoder(toy)(patches[:0])
    assert (features.shape, features.dtype, toy.sizes) == ((0, 4), torch.float32, [])
    assert BatchEncoder(Pixels())(patches[:0]).shape == (0, 3, 8, 8)


def test_pixels_stay_as_they_are(patches: Any) -> None:
    pixels = BatchEncoder(Pixels(), precision="bf16")(patches)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), patches)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_used_only_where_it_is_asked_for(precision: Any, patches: Any) -> None:
    toy = Toy()
    exact = BatchEncoder(toy, precision="auto")(patches)
    encode = BatchEncoder(toy, precision=precision)
    found = encode(patches)
    assert encode.precision == precision and found.dtype == torch.float32
    apart = (found - exact).abs().max()
    assert 0 < apart < 2e-2
    assert torch.equal(encode(patches), found)


def test_what_does_not_fit_is_done_in_halves_and_remembered(
    patches: Any, caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy()
    expected = BatchEncoder(toy)(patches)
    toy.sizes, toy.fits = [], 3
    encode = BatchEncoder(toy)
    with caplog.at_level(logging.WARNING):
        found = encode(patches)
        assert torch.equal(encode(patches), found)
    assert torch.allclose(found, expected, atol=1e-6)
    assert toy.sizes == [10, 5, 2, 2, 2, 2, 2, *[2] * 5]
    assert encode.most == 2
    assert [r.getMessage() for r in caplog.records] == [
        "cpu overflows with 10 patches at once; fewer from now on"
    ]


def test_one_patch_that_does_not_fit_is_told(patches: Any) -> None:
    toy = Toy()
    toy.fits = 0
    told = r"'toy' overflows the memory of cpu with one patch\. .*--precision fp16"
    with pytest.raises(BackendError, match=told):
        BatchEncoder(toy)(patches)


def test_other_errors_of_an_encoder_are_its_own(patches: Any) -> None:
    class Broken(Toy):
        def forward(self, patches: Tensor) -> Tensor:
            raise ZeroDivisionError("in a plugin")

    with pytest.raises(ZeroDivisionError, match="in a plugin"):
        BatchEncoder(Broken())(patches)


@pytest.mark.parametrize("index", [None, [7, 9, 20], np.array([7, 9, 20])])
def test_nan_is_named_by_its_patch(index: Any) -> None:
    class Sick(Toy):
        def forward(self, patches: Tensor) -> Tensor:
            features = super().forward(patches)
            features[1, 2] = float("inf")
            return features

    patches = np.zeros((3, 8, 8, 3), np.uint8)
    name = 1 if index is None else 9
    with pytest.raises(DataError, match=rf"'toy' gave NaN or infinite features of patch {name}$"):
        BatchEncoder(Sick())(patches, index)
    told = rf"of patch {name} in bf16; try --precision fp32"
    with pytest.raises(DataError, match=told):
        BatchEncoder(Sick(), precision="bf16")(patches, index)


@pytest.mark.parametrize(
    ("features", "dim", "told"),
    [
        (torch.zeros(2, 5), 4, r"'toy' gave \(2, 5\) torch\.float32, expected \(2, 4\) float"),
        (torch.zeros(3, 4), 4, r"gave \(3, 4\) torch\.float32, expected \(2, 4\) float"),
        (torch.zeros(2, 4, dtype=torch.int64), 4, r"gave \(2, 4\) torch\.int64"),
        (torch.zeros(2, 4), None, r"expected \(2, 3, H, W\) uint8"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), None, r"expected \(2, 3, H, W\) uint8"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), None, r"expected \(2, 3, H, W\) uint8"),
    ],
)
def test_what_was_not_declared_is_refused(features: Tensor, dim: int | None, told: str) -> None:
    toy = Toy()
    toy.dim = dim  # type: ignore[assignment]
    with pytest.raises(DataError, match=told):
        check_features(features, 2, toy)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3))],
)
def test_other_things_than_patches_are_refused(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"patches are .*, expected \(n, H, W, 3\) uint8, RGB"):
        BatchEncoder(Toy())(wrong)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(DataError, match=r"precision is 'tf32', expected auto, fp32, fp16 or bf16"):
        BatchEncoder(Toy(), precision="tf32")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_on_a_gpu_the_encoders_own_precision_is_used() -> None:
    encoder = build_encoder("uni", depth=2)
    patches = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), dtype=np.uint8)
    exact = BatchEncoder(encoder)(patches)
    encode = BatchEncoder(encoder, "cuda")
    assert encode.precision == "fp16"
    found = encode(patches)
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    scale = exact.abs().mean()
    assert (found - exact).abs().mean() / scale < 2e-2
    full = BatchEncoder(encoder, "cuda", "fp32")(patches)
    assert (full - exact).abs().mean() / scale < 2e-3


@pytest.mark.gpu
def test_on_a_gpu_a_batch_that_overflows_is_done_in_parts() -> None:
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(int(free * 0.97), dtype=torch.uint8, device="cuda")
    encode = BatchEncoder(build_encoder("uni", depth=2), "cuda", "fp32")
    patches = np.zeros((512, 256, 256, 3), np.uint8)
    assert encode(patches).shape == (512, 1024)
    assert encode.most is not None and encode.most < 512
    del hog
