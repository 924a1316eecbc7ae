"""The built-in encoder: its published values, its invariances, its speed-minded operations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from wsizoo.encoders import _he_ops as ops
from wsizoo.encoders._threads import in_threads
from wsizoo.encoders.builtin import HandcraftedHE
from wsizoo.encoders.handcrafted import (
    FEATURE_NAMES,
    VERSION,
    encode,
    raw_features,
    standardise,
    table_digest,
)
from wsizoo.errors import DataError

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
TILE = DATA / "pcam_tiles/tumor/93146fdd1964faa0b09cbb3464ecb53b2c74eaae.png"
GOLDEN = Path(__file__).parent / "golden" / f"handcrafted_he_v{VERSION}.npy"
DIGESTS = {1: "cf44892689b65eafbcb114c5422af8247559715e4d5d0766268118e286c3c752"}
FEW = settings(max_examples=20, deadline=None)

# index: name, raw value on the formula patch, on the PCam tile, on white; written down beforehand
# from a separate implementation.
CHECK_VALUES = {
    0: ("mean_H", 0.72187, 0.10437, 0.00000),
    1: ("mean_E", -0.09775, 0.04479, 0.00000),
    2: ("mean_R", 0.20745, 0.04888, 0.00000),
    3: ("std_H", 0.45579, 0.08601, 0.00100),
    6: ("corr_HE", -0.79936, 0.57372, 0.00000),
    9: ("skew_H", 1.00799, 1.75892, 0.00000),
    12: ("hist1_H_0", 0.07743, 0.59361, 1.00050),
    20: ("hist1_E_0", 0.87390, 0.75833, 1.00050),
    28: ("hist1_R_0", 0.31111, 0.03162, 0.03162),
    36: ("hist3_H_0", 0.03162, 0.51039, 1.00050),
    60: ("joint_00", 0.03162, 0.49748, 0.81710),
    66: ("joint_11", 0.03162, 0.52562, 0.03162),
    85: ("band0_abs_G", -3.69442, -3.09026, -6.90776),
    86: ("band0_peak_G", 0.50099, 0.75333, 0.00000),
    87: ("band1_H", -2.18950, -3.56655, -6.90776),
    90: ("cross1_HE", -0.77316, 0.34709, 0.00000),
    93: ("blob1_H", -4.87323, -5.62542, -6.90776),
    95: ("hole1_H", -5.02458, -6.24911, -6.90776),
    97: ("ridge1_H", -2.65056, -4.54403, -6.90726),
    99: ("blobpeak1_H", 0.35187, 0.26909, 0.00000),
    101: ("coh1_H", 0.97348, 0.35206, 0.01000),
    103: ("cohw1_H", 0.97502, 0.35169, 0.01000),
    105: ("aniso1_H", 0.92621, 0.18052, 0.01000),
    107: ("grad1_H", -1.58696, -3.45667, -6.90776),
    137: ("blob3_H", -5.10292, -5.95719, -6.90776),
    145: ("coh3_H", 0.84063, 0.39980, 0.01000),
    153: ("band4_H", -2.40198, -4.10960, -6.90776),
    156: ("cross4_HE", -0.59242, 0.57099, 0.00000),
    159: ("nuc_abs_area", -0.22277, -4.27670, -4.59291),
    160: ("nuc_abs_H", 0.82905, 0.05166, 0.00000),
    163: ("nuc_abs_Hstd", 0.43848, 0.13303, 0.00100),
    164: ("nuc_abs_edge", 0.18177, 0.59912, 0.02452),
    165: ("nuc_abs_clu8", 0.11709, 0.00427, 0.00100),
    166: ("nuc_abs_clu16", 0.02581, 0.00274, 0.00100),
    167: ("nuc_rel_area", -1.66502, -1.32821, -0.68072),
    174: ("nuc_rel_clu16", 0.02492, 0.06352, 0.00100),
    175: ("white_frac", 0.00000, 0.36763, 0.99331),
    176: ("pale_frac", 0.00326, 0.68308, 0.99331),
    177: ("dark_frac", 0.12011, 0.00027, 0.00001),
    178: ("lbp1_0", 0.25715, 0.29337, 1.00050),
    188: ("lbp2_0", 0.23853, 0.29627, 1.00050),
    198: ("lbp3_0", 0.30691, 0.26646, 1.00050),
    207: ("lbp3_9", 0.71509, 0.60083, 0.03162),
}


def formula_patch(height: int = 224, width: int = 224) -> Tensor:
    """(1, 3, height, width) uint8 by integer arithmetic only."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    base = 3 * y + 5 * x + x * y // 32
    return torch.stack([(base + 60 * c) % 256 for c in range(3)]).to(torch.uint8)[None]


def tissue_like(size: int, seed: int) -> Tensor:
    """(1, 3, size, size) uint8: pink ground, purple discs and grain, by integer arithmetic only."""
    y, x = torch.arange(size)[:, None], torch.arange(size)[None, :]
    grain = (x * 7919 + y * 104729 + x * y * 31 + seed * 1299709) % 8191 % 23 - 11
    image = torch.tensor([228, 168, 202])[:, None, None] + grain
    for k in range(size // 8):
        cx, cy = (k * 7351 + seed * 17) % size, (k * 4253 + seed * 29) % size
        inside = (x - cx) ** 2 + (y - cy) ** 2 < (3 + k % 6) ** 2
        image = torch.where(inside, torch.tensor([108, 62, 132])[:, None, None] + grain, image)
    return image.clamp(0, 255).to(torch.uint8)[None]


def white_patch() -> Tensor:
    return torch.full((1, 3, 224, 224), 255, dtype=torch.uint8)


def golden_vectors() -> Tensor:
    """(4, 208). To re-record: raise VERSION, then np.save(GOLDEN, golden_vectors().numpy())."""
    patches = [formula_patch(), tissue_like(224, 1), tissue_like(148, 2), formula_patch(57, 130)]
    return torch.cat([encode(patch) for patch in patches])


def orientations(patches: Tensor) -> Iterator[Tensor]:
    for turns in range(4):
        turned = torch.rot90(patches, turns, (2, 3))
        yield turned
        yield turned.flip(3)


def check_column(raw: Tensor, column: int, total: float) -> None:
    for index, row in CHECK_VALUES.items():
        assert FEATURE_NAMES[index] == row[0]
        assert raw[0, index].item() == pytest.approx(row[column], abs=1e-4), row[0]
    assert raw.double().sum().item() == pytest.approx(total, abs=1e-3)


def test_formula_patch_has_the_published_values() -> None:
    check_column(raw_features(formula_patch()), 1, -70.2357)


def test_white_patch_has_the_published_values() -> None:
    check_column(raw_features(white_patch()), 3, -243.4114)


@pytest.mark.skipif(not TILE.exists(), reason="the PCam patches are not here (set WSIZOO_DATA)")
def test_pcam_patch_has_the_published_values() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.asarray(image.open(TILE).convert("RGB"))
    raw = raw_features(torch.tensor(pixels).permute(2, 0, 1)[None])
    check_column(raw, 2, -140.0486)
    assert standardise(raw).double().sum().item() == pytest.approx(-58.407, abs=2e-2)


def test_vectors_are_those_recorded_for_this_version() -> None:
    assert GOLDEN.exists(), f"no vectors are recorded for version {VERSION}: see golden_vectors"
    recorded = torch.from_numpy(np.load(GOLDEN))
    message = "the vectors changed: features made before no longer fit; raise VERSION"
    assert torch.allclose(golden_vectors(), recorded, rtol=0, atol=5e-4), message


def test_digest_is_that_of_this_version() -> None:
    assert table_digest() == DIGESTS[VERSION], "the table changed: raise VERSION"


def test_there_are_208_features_with_distinct_names() -> None:
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 208
    assert encode(formula_patch()).shape == (1, 208)
    assert encode(formula_patch()).dtype == torch.float32
    assert encode(torch.empty(0, 3, 224, 224, dtype=torch.uint8)).shape == (0, 208)


def test_component_declares_what_it_computes() -> None:
    encoder = HandcraftedHE()
    patches = tissue_like(96, 3)
    assert torch.equal(encoder(patches), encode(patches))
    assert (encoder.name, encoder.dim, encoder.mpp) == ("handcrafted-he", 208, 0.5)
    assert encoder.weights == table_digest()
    assert encoder.revision == f"v{VERSION}"


@pytest.mark.parametrize("size", [224, 148, 96])
def test_the_eight_orientations_of_a_patch_have_one_vector(size: int) -> None:
    patches = torch.cat([formula_patch(size, size), tissue_like(size, 4), tissue_like(size, 5)])
    reference = encode(patches)
    for turned in orientations(patches):
        assert torch.allclose(encode(turned), reference, rtol=0, atol=2e-4)


def test_a_vector_does_not_depend_on_batch_chunk_or_layout() -> None:
    made = [tissue_like(224, seed) for seed in range(8)]
    patches = torch.cat([formula_patch(), *made, hostile(224, 224)])
    reference = encode(patches)
    results = [encode(patches, chunk) for chunk in (1, 2, 3, 8)]
    results.append(torch.cat([encode(patch[None]) for patch in patches]))
    strided = patches.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    results.append(encode(strided))
    for result in results:
        assert torch.allclose(result, reference, rtol=0, atol=2e-5)


def test_a_vector_is_the_same_to_the_last_bit_with_any_number_of_threads() -> None:
    patches = torch.cat([formula_patch(), *(tissue_like(224, seed) for seed in range(4))])
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(encode(patches, chunk=2))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


def test_autocast_and_gradients_change_nothing() -> None:
    patches = torch.cat([tissue_like(96, 1), formula_patch(96, 96)])
    reference = encode(patches)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(patches), reference)
    with torch.inference_mode():
        assert torch.equal(encode(patches), reference)
    assert not reference.requires_grad


def test_an_error_in_a_thread_is_raised_and_the_number_of_threads_kept() -> None:
    def fail(part: Tensor) -> Tensor:
        raise DataError(f"cannot be {part.item()}")

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(DataError, match="cannot be 1"):
        in_threads(fail, torch.arange(1, 4).split(1))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


FORKED = """
import multiprocessing, torch
from wsizoo.encoders.handcrafted import encode
torch.set_num_threads(2)
patches = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
before = encode(patches, chunk=1)
child = multiprocessing.get_context("fork").Process(target=encode, args=(patches, 1))
child.start()
child.join(60)
assert child.exitcode == 0
assert torch.equal(encode(patches, chunk=1), before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=120)


def test_spread_under_a_nuclear_mask_keeps_its_digits_on_flat_dark_patches() -> None:
    dark = torch.full((1, 3, 224, 224), 7, dtype=torch.uint8)
    raw = raw_features(dark)[0].double()
    area, haematoxylin = raw[159].exp() - 0.01, raw[160]
    left = 0.02 / (area + 0.02)  # H is one number, so only what 0.02 leaves of it is spread
    expected = ((haematoxylin**2 / (1 - left) * left) + 1e-6).sqrt()
    assert FEATURE_NAMES[163] == "nuc_abs_Hstd"
    assert raw[163].item() == pytest.approx(expected.item(), rel=1e-5)


def hostile(height: int, width: int) -> Tensor:
    """(11, 3, height, width): flat colours, noise, a checkerboard and a hard edge."""
    colours = [
        (0, 0, 0),
        (255,) * 3,
        (128,) * 3,
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (0, 255, 9),
    ]
    flat = [
        torch.tensor(c, dtype=torch.uint8)[:, None, None].expand(3, height, width) for c in colours
    ]
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    board = ((x + y) % 2 * 255).to(torch.uint8).expand(3, height, width)
    half = (x < width / 2).expand(3, height, width).to(torch.uint8) * 255
    noise = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    single = torch.zeros(3, height, width, dtype=torch.uint8)
    single[:, height // 2, width // 2] = 255
    return torch.stack([*flat, board, half, noise.to(torch.uint8), single])


@pytest.mark.parametrize(
    "size", [(224, 224), (1, 1), (2, 2), (3, 5), (31, 33), (224, 1), (40, 500)]
)
def test_hostile_patches_give_finite_vectors_within_the_clamp(size: tuple[int, int]) -> None:
    features = encode(hostile(*size))
    assert bool(features.isfinite().all())
    assert features.abs().max() <= 6


@FEW
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**31))
def test_any_size_is_encoded(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, height, width)
    patches = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    raw = raw_features(patches)
    assert raw.shape == (2, 208)
    assert bool(raw.isfinite().all())


def test_patches_that_are_not_uint8_rgb_are_refused() -> None:
    with pytest.raises(DataError, match=r"given patches \(1, 3, 8, 8\) of torch.float32"):
        encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match=r"reads uint8 RGB \(B, 3, H, W\)"):
        encode(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(DataError, match="given patches"):
        encode(torch.zeros(1, 3, 0, 8, dtype=torch.uint8))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 47, 63, 64, 148])
def test_padding_mirrors_from_32_px_and_repeats_below(size: int) -> None:
    image = torch.arange(size, dtype=torch.uint8)[None, None, :, None].repeat(1, 1, 1, 32)
    extra = -size % 32
    mode: Literal["reflect", "edge"] = "reflect" if size >= 32 else "edge"
    widths = ((0, 0), (0, 0), (extra // 2, extra - extra // 2), (0, 0))
    expected = np.pad(image.numpy(), widths, mode=mode)
    assert np.array_equal(ops.pad_to_multiple(image).numpy(), expected)


def random_planes(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_blur_is_the_separable_121_filter_for_floats_and_integers() -> None:
    planes = random_planes(2, 3, 7, 9)
    expected = planes.double().numpy()
    for axis in (2, 3):
        expected = ndimage.convolve1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    assert np.allclose(ops.blur(planes).numpy(), expected, atol=1e-6)
    whole = (planes * 765).to(torch.int16)
    exact = ops.blur_times_16(ops.pad_edges(whole))
    assert torch.allclose(exact.float() / 16, ops.blur(whole.float()), atol=1e-3)


def test_eigenvalues_are_those_of_the_hessian_matrix() -> None:
    plane = random_planes(1, 1, 8, 6)
    p = np.pad(plane[0, 0].double().numpy(), 1, mode="edge")
    c = p[1:-1, 1:-1]
    xx, yy = p[1:-1, 2:] - 2 * c + p[1:-1, :-2], p[2:, 1:-1] - 2 * c + p[:-2, 1:-1]
    xy = (p[2:, 2:] + p[:-2, :-2] - p[2:, :-2] - p[:-2, 2:]) / 4
    matrix = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)
    expected = np.linalg.eigvalsh(matrix)
    small, large = ops.hessian_eigenvalues(plane)
    assert np.allclose(small[0, 0] / 2, expected[..., 0], atol=1e-5)
    assert np.allclose(large[0, 0] / 2, expected[..., 1], atol=1e-5)


def test_histograms_split_values_between_the_two_nearest_bins() -> None:
    planes = random_planes(2, 2, 6, 6) * 3 - 1
    low, step = torch.tensor([0.0, -0.5]), torch.tensor([0.1, 0.2])
    position = ((planes - low[:, None, None]) / step[:, None, None]).clamp(0, 7)
    bins = torch.arange(8)[:, None, None]
    expected = (1 - (position.unsqueeze(2) - bins).abs()).clamp(min=0).mean((-2, -1))
    assert torch.allclose(ops.soft_histogram(planes, low, step, 8), expected, atol=1e-6)


def test_triangles_are_linear_weights_around_each_integer() -> None:
    plane = random_planes(2, 5, 5) * 4
    integers = torch.arange(5)[:, None]
    expected = (1 - (plane.flatten(1).unsqueeze(1) - integers).abs()).clamp(min=0)
    assert torch.allclose(ops.triangles(plane, 5), expected, atol=1e-6)


def pattern_by_hand(grey: np.ndarray, y: int, x: int, margin: int) -> int:
    circle = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    bits = [int(grey[y + dy, x + dx] >= grey[y, x] + margin) for dy, dx in circle]
    transitions = sum(a != b for a, b in zip(bits, bits[1:] + bits[:1], strict=True))
    return sum(bits) if transitions <= 2 else 9


@FEW
@given(
    st.integers(3, 9), st.integers(3, 9), st.sampled_from([torch.int16, torch.int32]), st.integers()
)
def test_binary_patterns_are_those_counted_by_hand(
    height: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    grey = torch.randint(0, 30, (2, height, width), generator=generator).to(dtype)
    shares = ops.binary_pattern_shares(grey, 4)
    for image, found in zip(grey.numpy(), shares, strict=True):
        inner = [(y, x) for y in range(1, height - 1) for x in range(1, width - 1)]
        counts = np.bincount([pattern_by_hand(image, y, x, 4) for y, x in inner], minlength=10)
        assert np.allclose(found.numpy(), counts / len(inner), atol=1e-6)
