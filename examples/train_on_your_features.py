"""Train a model of the zoo on your own feature files, evaluate it, save it and verify it.

    python examples/train_on_your_features.py [FEATURES_FOLDER LABELS.csv [MODEL_FOLDER]]

LABELS.csv has the columns `slide` (a file's name without .h5) and `label`. Feature files come from
`wsizoo extract` or `wsizoo.write_bag`. Without arguments a synthetic set is made: random vectors,
in which positive slides hold a few shifted patches.
"""

import csv
import sys
from pathlib import Path

import torch

import wsizoo
from wsizoo.measures.metrics import roc_auc
from wsizoo.train.loop import fit

HELD_OUT = 4  # every fourth slide of a class is for testing


def make_set(folder: Path, slides: int = 40, dim: int = 32) -> tuple[Path, Path]:
    """Synthetic feature files and their labels."""
    generator = torch.Generator().manual_seed(0)
    made = wsizoo.Fingerprint(encoder="random-vectors", preprocessing="none", mpp=0.5)
    rows = []
    for i in range(slides):
        n = int(torch.randint(50, 150, (), generator=generator))
        features = torch.randn(n, dim, generator=generator)
        features[: 8 * (i % 2), :4] += 1.5
        cells = torch.stack([torch.arange(n) % 10, torch.arange(n) // 10], 1)  # (n, 2)
        bag = wsizoo.Bag(features, cells * 448, spacing=448.0, mpp=0.25, encoder=made)
        wsizoo.write_bag(bag.replace(slide_id=f"s{i:02d}"), folder / "features" / f"s{i:02d}.h5")
        rows.append(f"s{i:02d},{'positive' if i % 2 else 'negative'}")
    table = folder / "labels.csv"
    table.write_text("\n".join(["slide,label", *rows]) + "\n", encoding="utf-8")
    return folder / "features", table


def read_set(folder: Path, table: Path) -> tuple[list[str], list[wsizoo.Bag], list[wsizoo.Bag]]:
    """Class names, and the bags for training and for testing, with their labels as target."""
    with open(table, newline="", encoding="utf-8") as file:
        labels = {row["slide"]: row["label"] for row in csv.DictReader(file)}
    classes = sorted(set(labels.values()))
    train, test = [], []
    for label, name in enumerate(classes):
        for i, slide in enumerate(sorted(s for s in labels if labels[s] == name)):
            bag = wsizoo.read_bag(folder / f"{slide}.h5").replace(target={"label": label})
            (test if i % HELD_OUT == 0 else train).append(bag)
    return classes, train, test


def main(folder: Path, table: Path, target: Path) -> None:
    """Build, fit, evaluate, save, verify, reload."""
    torch.set_num_threads(1)  # models this small are faster so
    classes, train, test = read_set(folder, table)

    # Any entry of the zoo, told which features it reads and which classes it gives.
    encoder = (train[0].encoder and train[0].encoder.encoder) or "unknown"
    model = wsizoo.build(
        "abmil-uni",
        f"encoder={encoder}",
        f"encoder.dim={train[0].dim}",
        f"head.classes=[{','.join(classes)}]",
        "aggregator.dim=64",
        "aggregator.attention=32",
    )
    fit(
        model,
        train,
        epochs=12,
        lr=2e-3,
        after_epoch=lambda epoch, loss: print(f"epoch {epoch:>2}  loss {loss:.3f}"),
    )

    with torch.inference_mode():
        logits = torch.stack([model(bag).logits for bag in test])  # (n, C)
    truth = torch.tensor([bag.target["label"] for bag in test])
    facts = {
        "accuracy": float((logits.argmax(1) == truth).float().mean()),
        "test slides": len(test),
    }
    if len(classes) == 2:
        facts["AUC"] = roc_auc(truth.numpy(), (logits[:, 1] - logits[:, 0]).double().numpy())
    print(facts)

    wsizoo.save(model, target, training=facts, overwrite=True)
    wsizoo.verify(target)
    again = wsizoo.load(target)
    print(f"saved, verified and reloaded {target}: classes {', '.join(again.classes)}")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    work = Path("example-training")
    if len(arguments) < 2:
        arguments = [*make_set(work)]
    main(arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else work / "model")
