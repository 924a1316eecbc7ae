"""The encoders that need no weights, as components."""

from __future__ import annotations

from torch import Tensor

from wsizoo.encoders.handcrafted import FEATURE_NAMES, VERSION, encode, table_digest
from wsizoo.interfaces import Encoder


class HandcraftedHE(Encoder):
    """208 statistics of stain, texture and nuclei; see `wsizoo.encoders.handcrafted`."""

    name = "handcrafted-he"
    dim = len(FEATURE_NAMES)
    mpp = 0.5
    patch_size = 224
    preprocessing = "uint8 RGB at 0.5 um/px; pad to a multiple of 32; optical density, white 255"
    pooling = "statistics"
    revision = f"v{VERSION}"
    weights = table_digest()

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 at 0.5 um/px -> (B, 208) float32."""
        return encode(patches)


class Pixels(Encoder):
    """No encoder: the patches themselves, for models that read pixels.

    They are large and the model sees nothing else of a slide, so edges of tissue are taken too.
    """

    name = "pixels"
    dim = None
    mpp = 4.0
    patch_size = 224
    min_tissue = 0.1

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, as they are."""
        return patches
