"""Every network of the catalogue, held to the construction that its publisher or TRIDENT states."""

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsizoo.encoder_spec import EncoderSpec, ImageSpec
from wsizoo.encoders.libraries import import_library
from wsizoo.encoders.loading import build_encoder, load_encoder
from wsizoo.encoders.networks import NetworkEncoder, TimmEncoder, TransformersEncoder
from wsizoo.errors import SpecError, StrictnessError
from wsizoo.plugins import discover
from wsizoo.registry import Entry, Registry
from wsizoo.seeding import seeded

ROOT = Path(__file__).parent.parent
CORE = Registry.of(discover([], allow=""))
SPECS = {name: CORE.encoder_spec(name) for name in CORE.encoders}
NETWORKS = [n for n, spec in SPECS.items() if spec.component in ("timm", "transformers")]
ONE_LAYER = {"timm": {"depth": 1}, "transformers": {"num_hidden_layers": 1}}
MILLIONS = {  # of parameters; where a publisher states them they agree to the last digit here
    "resnet50-trunc": 8.54,
    "resnet50": 23.51,
    "uni": 303.35,
    "uni2-h": 681.39,
    "gigapath": 1134.95,
    "virchow": 631.23,
    "virchow-cls": 631.23,
    "virchow2": 631.24,
    "virchow2-cls": 631.24,
    "h-optimus-0": 1134.77,
    "h-optimus-1": 1134.77,
    "phikon": 85.80,
    "phikon-v2": 303.35,
    "lunit-vits8": 21.67,
    "lunit-vits16": 21.67,
    "hipt-vit256": 21.69,
    "plip": 87.85,
    "kaiko-vits16": 21.67,
    "kaiko-vits8": 21.67,
    "kaiko-vitb16": 85.80,
    "kaiko-vitb8": 85.81,
    "kaiko-vitl14": 304.37,
    "midnight": 1134.77,
    "midnight-cls": 1134.77,
}


def reduced(name: str) -> dict[str, Any]:
    """One layer, where that can be asked for."""
    return {} if name.startswith("resnet") else ONE_LAYER[SPECS[name].component or ""]


def with_one_layer(name: str) -> Registry:
    """The core's registry with one entry that builds one layer only."""
    record = dict(CORE.encoders[name].record)
    params = dict(record["params"])
    params["arguments"] = {**params.get("arguments", {}), **reduced(name)}
    entry = Entry(name, {**record, "params": params}, "wsizoo")
    return Registry(CORE.plugins, encoders={**CORE.encoders, name: entry})


def random_patches(name: str, n: int = 2) -> Tensor:
    """As large as the encoder resizes to, so that preparing them is exact."""
    image = SPECS[name].image
    assert image
    edge = image.resize or image.size
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 156, (n, 3, edge, edge), generator=generator)
    ramp = torch.arange(edge).view(1, 1, 1, edge) * 99 // edge
    return (noise + ramp * torch.arange(n).view(n, 1, 1, 1)).to(torch.uint8)


# How they are made and called elsewhere, as their publishers and TRIDENT state it.


def timm_model(architecture: str, **arguments: Any) -> Any:
    timm = import_library("timm")
    for key, home in (("mlp_layer", timm.layers), ("act_layer", nn)):
        if key in arguments:
            arguments[key] = getattr(home, arguments[key])
    return timm.create_model(architecture, pretrained=False, num_classes=0, **arguments).eval()


def called(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


def cls_and_mean(first: int) -> Callable[[Any, Tensor], Tensor]:
    def call(network: Any, images: Tensor) -> Tensor:
        tokens = network(images)
        tokens = getattr(tokens, "last_hidden_state", tokens)
        return torch.cat((tokens[:, 0], tokens[:, first:].mean(1)), dim=-1)

    return call


def class_token(network: Any, images: Tensor) -> Tensor:
    return network(images).last_hidden_state[:, 0, :]


SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
VIRCHOW = {
    **SWIGLU,
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    "depth": 1,
}
UNI = {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True, "depth": 1}
UNI2_H = {
    **SWIGLU,
    **UNI,
    "patch_size": 14,
    "num_heads": 24,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True,
    "reg_tokens": 8,
}
GIGAPATH = {
    "img_size": 224,
    "in_chans": 3,
    "patch_size": 16,
    "embed_dim": 1536,
    "depth": 1,
    "num_heads": 24,
    "mlp_ratio": 5.33334,
}
H_OPTIMUS = {
    "img_size": 224,
    "init_values": 1e-5,
    "dynamic_img_size": False,
    "global_pool": "token",
    "depth": 1,
}
KAIKO = {"img_size": 224, "dynamic_img_size": True, "depth": 1}
Reference = tuple[str, dict[str, Any], Callable[[Any, Tensor], Tensor]]
REFERENCES: dict[str, Reference] = {
    "resnet50": ("resnet50.tv_in1k", {}, called),
    "uni": ("vit_large_patch16_224", UNI, called),
    "uni2-h": ("vit_giant_patch14_224", UNI2_H, called),
    "gigapath": ("vit_giant_patch14_dinov2", GIGAPATH, called),
    "virchow": ("vit_huge_patch14_224", VIRCHOW, cls_and_mean(1)),
    "virchow2": ("vit_huge_patch14_224", {**VIRCHOW, "reg_tokens": 4}, cls_and_mean(5)),
    "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", H_OPTIMUS, called),
    "lunit-vits8": ("vit_small_patch8_224", {"depth": 1}, called),
    "lunit-vits16": ("vit_small_patch16_224", {"depth": 1}, called),
    "kaiko-vits16": ("vit_small_patch16_224", KAIKO, called),
    "kaiko-vits8": ("vit_small_patch8_224", KAIKO, called),
    "kaiko-vitb16": ("vit_base_patch16_224", KAIKO, called),
    "kaiko-vitb8": ("vit_base_patch8_224", KAIKO, called),
    "kaiko-vitl14": ("vit_large_patch14_reg4_dinov2", {**KAIKO, "img_size": 518}, called),
}
DINOV2_L = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 16, "image_size": 224}
DINOV2_G = {
    "hidden_size": 1536,
    "num_attention_heads": 24,
    "patch_size": 14,
    "image_size": 518,  # not stated anywhere, so it is read off the file
    "use_swiglu_ffn": True,
}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Callable[[Any, Tensor], Tensor]]] = {
    "phikon": ("ViT", {}, class_token),
    "phikon-v2": ("Dinov2", DINOV2_L, class_token),
    "midnight": ("Dinov2", DINOV2_G, cls_and_mean(1)),
}


def prepared(name: str, patches: Tensor) -> Tensor:
    """By torchvision: centre crop, to floats, normalised (nothing has to be resized)."""
    import_library("torchvision")
    from torchvision.transforms import functional

    image = SPECS[name].image
    assert image
    images = functional.center_crop(patches, [image.size]).float() / 255
    return functional.normalize(images, image.mean, image.std)


def shaken(network: nn.Module) -> nn.Module:
    """Random values everywhere, so that no tensor is left out unnoticed (layer scales are 1e-5)."""
    with seeded(7), torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape) * 0.1)
            if "running_var" in name:
                tensor.abs_().add_(0.5)
    return network


def check_equal(name: str, folder: Path, network: Any, call: Callable[..., Tensor]) -> None:
    patches = random_patches(name)
    encoder = load_encoder(name, folder, with_one_layer(name))
    with torch.inference_mode():
        found, expected = encoder(patches), call(network, prepared(name, patches))
    assert found.shape == (2, SPECS[name].dim)
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_timm_encoder_gives_what_its_publishers_code_gives(name: str, tmp_path: Path) -> None:
    architecture, arguments, call = REFERENCES[name]
    with seeded(0):
        network = shaken(timm_model(architecture, **arguments))
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    check_equal(name, tmp_path, network, call)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_encoder_gives_what_its_publishers_code_gives(
    name: str, tmp_path: Path
) -> None:
    library = import_library("transformers")
    kind, arguments, call = TRANSFORMERS[name]
    config = getattr(library, f"{kind}Config")(num_hidden_layers=1, **arguments)
    options = {"add_pooling_layer": True} if kind == "ViT" else {}  # the file may hold a pooler
    with seeded(0):
        network = shaken(getattr(library, f"{kind}Model")(config, **options)).eval()
    save_as_on_the_hub(network, tmp_path)
    check_equal(name, tmp_path, network, call)


def save_as_on_the_hub(network: Any, folder: Path) -> None:
    """model.safetensors with the names of tensors that publishers' files have."""
    import_library("transformers").utils.logging.disable_progress_bar()
    network.save_pretrained(folder)


def test_published_names_of_tensors_are_those_of_older_versions(tmp_path: Path) -> None:
    """Or the two tests above would prove nothing for files that are on the Hub for years."""
    from safetensors import safe_open

    library = import_library("transformers")
    config = library.ViTConfig(num_hidden_layers=1)
    save_as_on_the_hub(library.ViTModel(config, add_pooling_layer=False), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "encoder.layer.0.attention.attention.query.weight" in file.keys()  # noqa: SIM118


def test_plip_gives_the_image_features_of_clip(tmp_path: Path) -> None:
    library = import_library("transformers")
    text, vision = {"num_hidden_layers": 1, "vocab_size": 64}, {"num_hidden_layers": 1}
    with seeded(0):
        config = library.CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 32})
        network = shaken(library.CLIPModel(config)).eval()
    save_as_on_the_hub(network, tmp_path)

    def call(network: Any, images: Tensor) -> Tensor:
        found = network.get_image_features(pixel_values=images)
        return getattr(found, "pooler_output", found)

    check_equal("plip", tmp_path, network, call)


def test_clams_resnet_is_the_third_stage_pooled(tmp_path: Path) -> None:
    whole = shaken(import_library("timm").create_model("resnet50.tv_in1k", pretrained=False))
    held = {n: t for n, t in whole.state_dict().items() if "num_batches" not in n}  # old files
    torch.save(held, tmp_path / "pytorch_model.bin")
    cut = timm_model("resnet50.tv_in1k", features_only=True, out_indices=(3,))
    cut.load_state_dict(whole.state_dict(), strict=False)
    pool = nn.AdaptiveAvgPool2d(1)
    check_equal("resnet50-trunc", tmp_path, cut, lambda net, x: pool(net(x)[0]).flatten(1))


def test_hipts_positions_are_resized_as_dino_does(tmp_path: Path) -> None:
    """A checkpoint of DINO's training: `teacher`, prefixes, a head, positions of 224 px."""
    name = "hipt-vit256"
    network = shaken(timm_model("vit_small_patch16_224", depth=1))
    teacher = {f"module.backbone.{n}": t.clone() for n, t in network.state_dict().items()}
    teacher["module.head.mlp.0.weight"] = torch.ones(3)
    torch.save({"teacher": teacher, "epoch": 9}, tmp_path / "vit256_small_dino.pth")
    encoder = load_encoder(name, tmp_path, with_one_layer(name))
    assert encoder(random_patches(name)).shape == (2, 384)
    found = encoder.get_parameter("network.pos_embed")[0]
    theirs = teacher["module.backbone.pos_embed"][0]
    assert torch.equal(found[0], theirs[0])
    grid = theirs[1:].view(14, 14, 384)
    matrix = bicubic(14, 16, (16 + 0.1) / 14)
    expected = torch.einsum("ya,xb,abc->yxc", matrix, matrix, grid.double())
    assert torch.allclose(found[1:].view(16, 16, 384).double(), expected, atol=1e-5)


def bicubic(n: int, wanted: int, factor: float) -> Tensor:
    """(wanted, n) weights of cubic convolution with a = -0.75, its edges repeated."""

    def weight(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = torch.zeros(wanted, n, dtype=torch.float64)
    for i in range(wanted):
        at = (i + 0.5) / factor - 0.5
        for j in range(int(at // 1) - 1, int(at // 1) + 3):
            matrix[i, min(max(j, 0), n - 1)] += weight(at - j)
    return matrix


TWINS = {  # the same network as another, or the same but for what is pooled
    "h-optimus-1": "h-optimus-0",
    "virchow-cls": "virchow",
    "virchow2-cls": "virchow2",
    "midnight-cls": "midnight",
}


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_in_pooling_alone(name: str) -> None:
    mine, theirs = SPECS[name], SPECS[TWINS[name]]
    assert (mine.component, mine.params, mine.image) == (
        theirs.component,
        theirs.params,
        theirs.image,
    )
    assert (mine.mpp, mine.patch_size, mine.keys) == (theirs.mpp, theirs.patch_size, theirs.keys)
    if name.endswith("-cls"):
        assert mine.repo == theirs.repo and mine.dim and 2 * mine.dim == theirs.dim
        assert (mine.pooling, theirs.pooling) == ("cls", "cls+mean")


def test_every_network_of_the_catalogue_is_held_to_a_reference() -> None:
    held = {*REFERENCES, *TRANSFORMERS, "plip", "resnet50-trunc", "hipt-vit256", *TWINS}
    assert held == set(NETWORKS) == set(MILLIONS)


@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_size_it_has_as_many_parameters_as_published(name: str) -> None:
    params = SPECS[name].params
    kind = TimmEncoder if SPECS[name].component == "timm" else TransformersEncoder
    encoder = kind(name, SPECS[name], **params)
    with torch.device("meta"):
        network = encoder.make()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == MILLIONS[name]


@pytest.mark.parametrize("name", ["virchow-cls", "virchow2-cls"])
def test_a_random_network_says_so_and_follows_its_seed(name: str) -> None:
    encoder = build_encoder(name, seed=3, **reduced(name))
    patches = random_patches(name)
    with torch.inference_mode():
        features = encoder(patches)
        again = build_encoder(name, seed=3, **reduced(name))(patches)
        other = build_encoder(name, seed=4, **reduced(name))(patches)
    assert features.shape == (2, 1280) and not encoder.training
    assert torch.equal(features, again) and not torch.allclose(features, other)
    stated = encoder.fingerprint()
    assert (stated.encoder, stated.revision, stated.weights) == (f"random-{name}", "random", None)


def test_what_is_not_random_is_not_built_as_if_it_were() -> None:
    with pytest.raises(SpecError, match=r"'handcrafted-he' is not random: wsizoo\.load_encoder"):
        build_encoder("handcrafted-he")
    with pytest.raises(SpecError, match=r"encoder 'uni' cannot be built: .*depht"):
        build_encoder("uni", depht=1)
    told = r"Dinov2Config has no argument 'num_hidden_layer'\. Did you mean 'num_hidden_layers'"
    with pytest.raises(SpecError, match=told):  # it would be ignored
        build_encoder("phikon-v2", num_hidden_layer=1)


@pytest.mark.parametrize("name", ["lunit-vits16", "phikon-v2"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_weights_that_do_not_fit_exactly_are_refused(name: str, fault: str, tmp_path: Path) -> None:
    made = build_encoder(
        name, **{**reduced(name), **({} if name[0] == "l" else {"image_size": 32})}
    )
    tensors = dict(made.network.state_dict())
    last = list(tensors)[-1]
    if fault == "missing":
        del tensors[last]
    elif fault == "unexpected":
        tensors["extra.weight"], last = torch.ones(2), "extra.weight"
    else:
        tensors[last] = torch.ones(7)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        StrictnessError, match=rf"encoder '{name}' do not fit the model; 1 {fault}: {last}"
    ) as caught:
        load_encoder(name, tmp_path, with_one_layer(name))
    assert fault != "misshapen" or r"(7,), expected (" in str(caught.value)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    for name in ("lunit-vits16", "phikon-v2"):
        made = build_encoder(name, **reduced(name))
        halves = {key: tensor.half() for key, tensor in made.network.state_dict().items()}
        torch.save(halves, tmp_path / "pytorch_model.bin")
        loaded = load_encoder(name, tmp_path, with_one_layer(name))
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}


FACTS = EncoderSpec(
    "s", "MIT", "x", dim=384, mpp=0.5, patch_size=224, pooling="cls", image=ImageSpec()
)


@pytest.mark.parametrize(
    ("changes", "params", "message"),
    [
        ({"image": None, "mpp": None}, {}, r"'e' states no mpp, image; its network needs it"),
        ({"pooling": "avg"}, {}, r"pooling is 'avg', expected cls, mean, cls\+mean, projection"),
        ({}, {"architecture": "hf-hub:a/b"}, r"architecture 'hf-hub:a/b' is an address"),
        ({}, {"architecture": "no_such_net"}, r"'e' cannot be built: .*no_such_net"),
        ({}, {"arguments": {"pretrained": True}}, r"cannot be built: .*pretrained"),
        ({}, {"arguments": {"checkpoint_path": "x"}}, r"cannot be built: .*checkpoint_path"),
        ({}, {"arguments": {"act_layer": "Silu"}}, r"cannot be built: .*no attribute 'Silu'"),
    ],
)
def test_an_entry_that_cannot_be_built_is_told(
    changes: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    facts = dataclasses.replace(FACTS, **changes)
    with pytest.raises(SpecError, match=message):
        TimmEncoder("e", facts, **{"architecture": "vit_tiny_patch16_224", **params}).draw(0)


@pytest.mark.parametrize("architecture", ["NoSuchModel", "AutoModel", "logging"])
def test_a_class_that_transformers_does_not_have_is_told(architecture: str) -> None:
    with pytest.raises(SpecError, match=rf"transformers has no model class '{architecture}'"):
        TransformersEncoder("e", FACTS, architecture).draw(0)


def test_an_encoder_reaches_a_process_that_has_imported_nothing(tmp_path: Path) -> None:
    """Where the import of torchvision fails, the network's classes could not be unpickled."""
    encoder = build_encoder("lunit-vits16", **reduced("lunit-vits16"))
    patches = random_patches("lunit-vits16", 1)
    (tmp_path / "sent").write_bytes(pickle.dumps((encoder, patches)))
    program = (
        "import pickle, torch; encoder, patches = pickle.load(open('sent', 'rb'));"
        "torch.save(encoder(patches).detach(), 'back')"
    )
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    back = torch.load(tmp_path / "back", weights_only=True)
    assert torch.allclose(back, encoder(patches), atol=1e-6)


class Shuffle(NetworkEncoder):
    """An architecture of a plugin's own."""

    def __init__(self, name: str, facts: EncoderSpec, width: int = 8) -> None:
        super().__init__(name, facts)
        self.width = width

    def make(self) -> nn.Module:
        return nn.Conv2d(3, self.width, 16, 16)


def test_a_convolutional_network_of_a_plugin_needs_ten_lines(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, dim=8, pooling="mean")
    encoder = Shuffle("mine", facts)
    encoder.draw(0)
    patches = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    assert encoder(patches).shape == (2, 8)
    other = Shuffle("mine", facts)
    other.load(encoder.network.state_dict())
    assert torch.equal(encoder(patches), other(patches))
