"""Encoders that are networks of timm or transformers, built from a catalogue entry's data."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wsizoo.encoder_spec import EncoderSpec
from wsizoo.encoders.images import describe_preparation, prepare
from wsizoo.encoders.libraries import import_library, mend_torchvision
from wsizoo.errors import SpecError
from wsizoo.interfaces import Encoder
from wsizoo.names import suggest
from wsizoo.seeding import made_blank, seeded
from wsizoo.weights import load_strict, refuse_misfits

POOLINGS = ("cls", "mean", "cls+mean", "projection")
NEVER_READ = "num_batches_tracked"  # a counter of batch norm that no inference reads


class NetworkEncoder(Encoder):
    """A network and the facts of its catalogue entry; made empty, then filled by `load` or `draw`.

    A plugin's own architecture overrides `make`, and `tokens` where calling the network does not
    give them.

    Args:
        name, facts: of the catalogue entry; `load_encoder` gives both.
    """

    network: nn.Module

    def __init__(self, name: str, facts: EncoderSpec) -> None:
        super().__init__()
        missing = [
            field
            for field in ("dim", "mpp", "patch_size", "pooling", "image")
            if getattr(facts, field) is None
        ]
        if missing:
            raise SpecError(
                f"encoder '{name}' states no {', '.join(missing)}; its network needs it"
            )
        if facts.pooling not in POOLINGS:
            raise SpecError(
                f"encoder '{name}': pooling is '{facts.pooling}', expected {', '.join(POOLINGS)}"
            )
        assert facts.mpp and facts.patch_size and facts.image  # not missing
        self.name, self.dim, self.pooling = name, facts.dim, facts.pooling
        self.mpp, self.patch_size = facts.mpp, facts.patch_size
        self.image, self.precision = facts.image, facts.precision
        self.preprocessing = describe_preparation(facts.image)

    def make(self) -> nn.Module:
        """The network, its parameters filled in any way."""
        raise NotImplementedError

    def tokens(self, images: Tensor) -> tuple[Tensor, int]:
        """Images (B, 3, h, w) -> outputs, and how many tokens stand before those of the image.

        Outputs: (B, T, C) tokens; (B, C, h', w') of a convolutional network; (B, C) vectors.
        """
        return self.network(images), 1

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 at `mpp` -> (B, D) float32."""
        tokens, before = self.tokens(prepare(patches, self.image))
        tokens = tokens.float()
        if self.pooling == "projection":
            return tokens
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)  # (B, h'w', C)
        if self.pooling == "cls":
            return tokens[:, 0]
        mean = tokens[:, before:].mean(1)  # (B, C)
        return mean if self.pooling == "mean" else torch.cat([tokens[:, 0], mean], 1)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the network and fill it. Raises StrictnessError: not exactly its tensors."""
        if made_blank(self._with_network, seed=0) is None:
            self.draw(seed=0)
        own = self.network.state_dict()
        counters = {key: own[key] for key in own if key.endswith(NEVER_READ)}
        load_strict(own, {**counters, **self.arranged(tensors)}, f"encoder '{self.name}'")

    def draw(self, seed: int) -> None:
        """Make the network with random weights."""
        with seeded(seed):
            self._with_network()

    def arranged(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Last changes to the tensors of a file, where a layout needs them."""
        return tensors

    def _with_network(self) -> NetworkEncoder:
        try:
            self.network = self.make()
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise SpecError(f"encoder '{self.name}' cannot be built: {error}") from error
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process mends torchvision before it meets the classes of the network."""
        return _restored, (_Mend(), type(self), self.__dict__)


class _Mend:
    def __reduce__(self) -> tuple[Any, ...]:
        return mend_torchvision, ()


def _restored(_: None, kind: type[NetworkEncoder], state: dict[str, Any]) -> NetworkEncoder:
    encoder = kind.__new__(kind)
    encoder.__dict__.update(state)
    return encoder


class TimmEncoder(NetworkEncoder):
    """A network of timm without its classifier.

    Args:
        architecture: as `timm.create_model` takes it. arguments: its further arguments; `mlp_layer`
            and `act_layer` by name, of timm.layers and torch.nn.
        resize_positions: bring the file's position embedding to this network's grid, as DINO does.
    """

    def __init__(
        self,
        name: str,
        facts: EncoderSpec,
        architecture: str,
        arguments: dict[str, Any] | None = None,
        resize_positions: bool = False,
    ) -> None:
        super().__init__(name, facts)
        self.architecture, self.arguments = architecture, dict(arguments or {})
        self.resize_positions = resize_positions
        if ":" in architecture:  # hf-hub:, local-dir:
            raise SpecError(f"encoder '{name}': architecture '{architecture}' is an address")
        import_library("timm")  # before anything is downloaded

    def make(self) -> nn.Module:
        timm = import_library("timm")
        arguments = dict(self.arguments)
        for key, home in {"mlp_layer": timm.layers, "act_layer": nn}.items():
            if key in arguments:
                arguments[key] = getattr(home, arguments[key])
        given = {"pretrained": False, "checkpoint_path": "", "num_classes": 0, "global_pool": ""}
        network: nn.Module = timm.create_model(self.architecture, **given, **arguments)
        return network

    def tokens(self, images: Tensor) -> tuple[Tensor, int]:
        output = self.network(images)
        if isinstance(output, list):  # features_only: one a stage
            return output[-1], 0
        return output, int(getattr(self.network, "num_prefix_tokens", 0))

    def arranged(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Position embeddings (1, 1 + n * n, C) on a grid of another size, if that is allowed.

        Source: interpolate_pos_encoding of https://github.com/facebookresearch/dino
        """
        own: Tensor = self.network.state_dict().get("pos_embed", torch.empty(0))
        theirs = tensors.get("pos_embed")
        if not self.resize_positions or theirs is None or theirs.shape == own.shape:
            return tensors
        first, grid = theirs[:, :1], theirs[:, 1:]
        n, wanted = math.isqrt(grid.shape[1]), math.isqrt(own.shape[1] - 1)
        planes = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)  # (1, C, n, n)
        planes = interpolate(planes, scale_factor=(wanted + 0.1) / n, mode="bicubic")
        grid = planes.flatten(2).transpose(1, 2)  # (1, wanted * wanted, C)
        return {**tensors, "pos_embed": torch.cat([first, grid], 1)}


class TransformersEncoder(NetworkEncoder):
    """A network of transformers, by its class there; no code of a repository runs.

    Args:
        architecture: class, e.g. "Dinov2Model". arguments: of its configuration; without
            `image_size` it follows from the file's position embeddings. options: of the class.
    """

    def __init__(
        self,
        name: str,
        facts: EncoderSpec,
        architecture: str,
        arguments: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name, facts)
        self.architecture = architecture
        self.arguments, self.options = dict(arguments or {}), dict(options or {})
        import_library("transformers")  # before anything is downloaded

    def make(self) -> nn.Module:
        network: nn.Module = self._kind()(self._config(), **self.options)
        return network

    def tokens(self, images: Tensor) -> tuple[Tensor, int]:
        output = self.network(images)
        return output.image_embeds if self.pooling == "projection" else output.last_hidden_state, 1

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As `NetworkEncoder.load`; transformers itself renames the tensors of older versions."""
        config = self._config()
        positions = tensors.get("embeddings.position_embeddings")
        if "image_size" not in self.arguments and positions is not None:
            config.image_size = config.patch_size * math.isqrt(positions.shape[1] - 1)
        with _quiet(import_library("transformers").utils.logging):
            self.network, told = self._kind().from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told, and an error below
                **self.options,
            )
        misshapen = [
            f"{key} {tuple(found)}, expected {tuple(own)}"
            for key, found, own in told["mismatched_keys"]
        ]
        refuse_misfits(
            f"encoder '{self.name}'", told["missing_keys"], told["unexpected_keys"], misshapen
        )

    def _kind(self) -> Any:
        kind = getattr(import_library("transformers"), self.architecture, None)
        if kind is None or not hasattr(kind, "config_class"):
            raise SpecError(
                f"encoder '{self.name}': transformers has no model class '{self.architecture}'"
            )
        return kind

    def _config(self) -> Any:
        """The configuration; its class would take an argument of any name."""
        kind = self._kind().config_class
        usual = kind()
        for argument in self.arguments:
            if not hasattr(usual, argument):
                raise SpecError(
                    f"encoder '{self.name}': {kind.__name__} has no argument '{argument}'. "
                    + suggest(argument, vars(usual), "It takes: ")
                )
        return kind(**self.arguments)


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No progress bars and reports of transformers inside; what they tell is checked."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            with warnings.catch_warnings():  # that a variable of the Hub's client has them off
                warnings.simplefilter("ignore")
                logging.enable_progress_bar()
