"""A published state dict under our names and back: nothing lost, nothing guessed."""

import pytest
import torch
from wsizoo_plugin_span.model import Span, SpanUNet
from wsizoo_plugin_span.official import entries, from_official, to_official
from wsizoo_plugin_span.settings import SlideSettings, UNetSettings

from wsizoo.errors import StrictnessError

SMALL = {"dim": 8, "head_dim": 4, "compat": "published"}
CLASSES = {"classification": 3, "survival": 4, "segmentation": 1}


def model_of(task, **options):
    """Settings, and the tensors of a slide model of them."""
    torch.manual_seed(0)
    if task == "segmentation":
        settings = UNetSettings.of(16, {**SMALL, **options})
        module = SpanUNet(16, **SMALL, **options)
        width = module.instance_dim
    else:
        settings = SlideSettings.of(16, {**SMALL, **options})
        module = Span(16, **SMALL, **options)
        width = module.out_dim
    ours = {f"aggregator.{name}": tensor for name, tensor in module.state_dict().items()}
    n = CLASSES[task]
    return settings, ours | {
        "head.linear.weight": torch.randn(n, width),
        "head.linear.bias": torch.randn(n),
    }


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("classification", {}),
        ("classification", {"pooling": "multiattn", "pool_dropout": 0.0, "tokens": []}),
        ("classification", {"pooling": "mean", "down": "patchmerge", "global_path": "kernel"}),
        ("classification", {"down": "linear", "conv_bias": True, "positions": "alibi"}),
        ("classification", {"input_activation": "gelu", "input_norm": True, "input_bias": True}),
        ("survival", {"pooling": "addition", "share_qkv": True, "tokens": ["lrn", "lrn", "fix"]}),
        ("survival", {"pooling": "concat", "pool_norm": False}),
        ("segmentation", {}),
        ("segmentation", {"skip_after_layers": False, "skip": "none", "global_path": "identity"}),
        ("segmentation", {"up": "patchinvs", "conv_norm": "pre", "global_path": "kernel"}),
    ],
    ids=str,
)
def test_any_model_survives_the_way_there_and_back(task, options):
    settings, ours = model_of(task, **options)
    file = to_official(ours, task, settings)
    assert set(file) == {entry.published for entry in entries(task, settings, CLASSES[task])}
    back, unused = from_official(file, task, settings)
    assert set(back) == set(ours)
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    marked = {name: tensor + 1 for name, tensor in unused.items()}
    again = to_official(back, task, settings, marked)
    assert all(torch.equal(again[name], marked[name]) for name in marked)


def test_unused_tensors_begin_as_a_layer_that_changes_nothing():
    settings, ours = model_of("survival", pool_norm=False)
    file = to_official(ours, "survival", settings)
    assert file["classifier_1.1.weight"].shape == (4, 24)
    assert bool((file["aggregator.fc.weight"] == 0).all())
    assert bool((file["aggregator.norm.weight"] == 1).all())


def test_files_that_do_not_fit_are_refused():
    settings, ours = model_of("survival", pool_norm=False, share_qkv=True)
    file = to_official(ours, "survival", settings)
    name = "encoder.blocks.0.modules_dict.trans_2.0.trans_block.q2.weight"
    spoilt = {
        r"holds other tensors: 1 missing \['encoder.blocks.0.+q2.weight'\], 0 unexpected": {
            k: v for k, v in file.items() if k != name
        },
        r"^a published .* holds other tensors: 0 missing \[\], 1 unexpected \['extra'\]": {
            **file,
            "extra": file[name],
        },
        r"q2.weight and .*q1.weight differ; with share_qkv they are one": {
            **file,
            name: file[name] + 1,
        },
        r"classifier_1.1.weight is \(4, 8\), expected \(4, 24\) for these settings": {
            **file,
            "classifier_1.1.weight": torch.zeros(4, 8),
        },
    }
    for message, tensors in spoilt.items():
        with pytest.raises(StrictnessError, match=message):
            from_official(tensors, "survival", settings)
    with pytest.raises(StrictnessError, match=r"^a slide model of these settings holds other t"):
        to_official({}, "survival", settings)
