"""Held to Pillow and to torchvision, which the encoders' own transforms use."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wsizoo.encoder_spec import ImageSpec
from wsizoo.encoders.images import describe_preparation, prepare, resized_in_floats
from wsizoo.encoders.libraries import import_library
from wsizoo.errors import DataError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
TISSUE = sorted(DATA.glob("he_rois/**/*.png"))[:6]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def transforms() -> Any:
    import_library("torchvision")
    from torchvision import transforms

    return transforms


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Sharp edges, gradients and noise, 300 x 256 px."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :300]
    planes = [255 * ((x // 7 + y // 5) % 2), 255 * x / 299, rng.integers(0, 256, x.shape)]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


def as_patches(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def grey_levels(image: Tensor) -> Tensor:
    return (image * 255).round()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize"), [(224, None), (224, 256), (448, None), (96, 128)])
def test_it_is_what_the_usual_transforms_give(
    mode: str, size: int, resize: int | None, transforms: Any, picture: Image.Image
) -> None:
    usual = transforms.Compose(
        [
            transforms.Resize(resize or size, transforms.InterpolationMode(mode)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
        ]
    )
    plain = ImageSpec(size, resize, mode)
    found = prepare(as_patches(picture), plain)
    assert found.shape == (1, 3, size, size)
    apart = (grey_levels(found) - grey_levels(usual(picture)[None])).abs()
    assert apart.max() <= 2 and (apart > 1).float().mean() < 1e-4
    assert (apart > 0).float().mean() < 0.05
    normalised = prepare(as_patches(picture), ImageSpec(size, resize, mode, **IMAGENET))
    expected = transforms.functional.normalize(found, **IMAGENET)
    assert torch.allclose(normalised, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_on_a_cpu_it_is_torchvisions_antialiased_resize_of_tensors(
    mode: str, picture: Image.Image
) -> None:
    import_library("torchvision")
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    patches = as_patches(picture)
    expected = resize(patches, [224], InterpolationMode(mode), antialias=True)[..., 19:243]
    found = prepare(patches, ImageSpec(224, None, mode))
    assert torch.equal(grey_levels(found), expected.float())


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 262), (448, 525), (100, 117)])
def test_on_other_devices_it_is_within_a_grey_level_of_pillow(
    mode: str, size: tuple[int, int], picture: Image.Image
) -> None:
    found = resized_in_floats(as_patches(picture), size, mode)
    expected = as_patches(picture.resize(size[::-1], PILLOW[mode])).float()
    apart = (found - expected).abs()
    assert apart.max() <= 2 and (apart > 1).float().mean() < 1e-3
    assert torch.equal(found, found.round()) and found.min() >= 0 and found.max() <= 255


@pytest.mark.skipif(not TISSUE, reason="no real images: set WSIZOO_DATA")
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_on_real_tissue_it_is_pillows_but_for_a_grey_level(mode: str) -> None:
    for path in TISSUE:
        with Image.open(path) as file:
            tissue = file.convert("RGB").crop((0, 0, 256, 256))
        expected = as_patches(tissue.resize((224, 224), PILLOW[mode])).float()
        found = grey_levels(prepare(as_patches(tissue), ImageSpec(224, None, mode)))
        assert (found - expected).abs().max() <= 1
        assert (found != expected).float().mean() < 0.01


def test_what_needs_no_resize_is_exact_whatever_the_strides(picture: Image.Image) -> None:
    patches = as_patches(picture)[..., :256]
    before = patches.clone()
    found = prepare(patches, ImageSpec(256, None, "bicubic"))
    assert torch.equal(found, patches.float() / 255)
    assert torch.equal(patches, before)
    assert torch.equal(found, prepare(patches.contiguous(), ImageSpec(256)))
    centre = prepare(patches, ImageSpec(224, 256))
    assert torch.equal(centre, found[..., 16:240, 16:240])


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8), torch.zeros(0)]
)
def test_other_things_than_patches_are_named(wrong: Tensor) -> None:
    with pytest.raises(DataError, match=r"an encoder was given patches .*it reads uint8 RGB"):
        prepare(wrong, ImageSpec())


CHANGES: dict[str, Callable[[ImageSpec], None]] = {
    "size": lambda image: setattr(image, "size", 200),
    "resize": lambda image: setattr(image, "resize", 256),
    "interpolation": lambda image: setattr(image, "interpolation", "bicubic"),
    "mean": lambda image: image.mean.__setitem__(1, 0.48145467),
    "std": lambda image: image.std.__setitem__(2, 0.23),
}


@pytest.mark.parametrize("field", ImageSpec.__dataclass_fields__)
def test_the_line_changes_whenever_the_pixels_do(field: str) -> None:
    def image() -> ImageSpec:
        return ImageSpec(224, None, "bilinear", [0.48145466] * 3, [0.225] * 3)

    changed = image()
    CHANGES[field](changed)
    assert describe_preparation(image()) != describe_preparation(changed)
    assert "\n" not in describe_preparation(image())
    assert describe_preparation(ImageSpec(224, 224)) == describe_preparation(ImageSpec(224))
