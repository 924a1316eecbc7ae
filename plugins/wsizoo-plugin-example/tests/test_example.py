"""It is an aggregator (conformance), still the same one (golden), and found by name.

After a change of the method that is meant, record the golden file anew and say why in the commit:

    python tests/test_example.py
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from wsizoo_plugin_example.model import ExamplePooling

import wsizoo
from wsizoo.testing import conformance

GOLDEN = Path(__file__).parent / "golden.safetensors"
WEIGHTS = "weights."


@conformance(ExamplePooling, dim=8)
def test_it_is_an_aggregator(check):
    check()


def test_it_still_computes_the_recorded_embedding():
    golden = load_file(GOLDEN)
    weights = {k.removeprefix(WEIGHTS): v for k, v in golden.items() if k.startswith(WEIGHTS)}
    method = ExamplePooling(in_dim=16, dim=8).eval()
    method.load_state_dict(weights)
    with torch.no_grad():
        output = method(wsizoo.Bag(golden["in.features"]))
    torch.testing.assert_close(output.slide, golden["out.slide"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.scores, golden["out.scores"], rtol=1e-4, atol=1e-5)


def test_its_model_builds_by_name():
    model = wsizoo.build("example-uni")
    with torch.no_grad():
        output = model(wsizoo.Bag(torch.randn(5, model.in_dim)))
    assert isinstance(model.aggregator, ExamplePooling)
    assert output.logits.shape == (2,)


def record():
    torch.manual_seed(0)
    method, features = ExamplePooling(in_dim=16, dim=8).eval(), torch.randn(20, 16)
    with torch.no_grad():
        output = method(wsizoo.Bag(features))
    weights = {WEIGHTS + name: tensor for name, tensor in method.state_dict().items()}
    outputs = {"out.slide": output.slide, "out.scores": output.scores}
    save_file({**weights, "in.features": features, **outputs}, GOLDEN)


if __name__ == "__main__":
    record()
