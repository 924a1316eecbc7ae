"""A new aggregator in one file, used by name without packaging it.

    python examples/aggregator_in_one_file.py

The file is its own hook module: `discover` reads it as it would read an installed plugin's. When
the method is worth keeping, `wsizoo new plugin NAME` makes a package of it.
"""

from importlib.metadata import EntryPoint
from pathlib import Path

import torch

import wsizoo
from wsizoo.plugins import discover
from wsizoo.registry import Registry
from wsizoo.testing import check_component
from wsizoo.train.loop import fit

wsizoo_api = 1


@wsizoo.hookimpl
def wsizoo_components() -> list[wsizoo.Component]:
    """What this file offers."""
    target = "aggregator_in_one_file:TopMean"
    return [wsizoo.Component("aggregator", "top-mean", target, "mean of the k best", "wsizoo")]


class TopMean(wsizoo.Aggregator):
    """The mean of the k patches that a linear score ranks highest, weighted by their scores."""

    def __init__(self, in_dim: int, dim: int = 64, k: int = 8) -> None:
        super().__init__(in_dim, out_dim=dim)
        self.k = k
        self.embed = torch.nn.Linear(in_dim, dim)
        self.score = torch.nn.Linear(dim, 1)

    def forward(self, bag: wsizoo.Bag) -> wsizoo.Aggregated:
        patches = self.embed(bag.features).relu()  # (N, E)
        scores = self.score(patches)[:, 0].sigmoid()  # (N,)
        best = scores.topk(min(self.k, len(bag)))
        slide = (best.values[:, None] * patches[best.indices]).mean(0)  # (E,)
        return wsizoo.Aggregated(slide=slide, scores=scores)


def main() -> None:
    """Build a model with it, train, save, verify, and hold it to the contract."""
    torch.set_num_threads(1)
    plugin = EntryPoint("one-file", "aggregator_in_one_file", "wsizoo")
    registry = Registry.of(discover([plugin]))

    # Any entry of the zoo with its aggregator replaced. 32 numbers a patch stand for features.
    model = wsizoo.build(
        "mean-uni",
        "encoder=random-vectors",
        "encoder.dim=32",
        "aggregator=top-mean",
        "head.classes=[negative,positive]",
        registry=registry,
    )
    generator = torch.Generator().manual_seed(0)
    bags = []
    for i in range(20):
        features = torch.randn(60, 32, generator=generator)
        features[: 5 * (i % 2), :4] += 2.0
        bags.append(wsizoo.Bag(features, slide_id=f"s{i:02d}", target={"label": i % 2}))
    history = fit(model, bags, epochs=10)
    print(f"loss {history.losses[0]:.3f} -> {history.losses[-1]:.3f}")

    folder = wsizoo.save(model, Path("example-top-mean"), overwrite=True)
    print("replayed", wsizoo.verify(folder, registry=registry).outputs)

    results = check_component(TopMean, in_dim=32, k=4)
    failed = [f"{result.check}: {result.reason}" for result in results if not result.passed]
    print(f"{len(results) - len(failed)} of {len(results)} conformance checks passed", *failed)


if __name__ == "__main__":
    main()
