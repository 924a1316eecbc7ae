"""Pre-training on a folder of images: each image is one region, so nothing is fused.

    python -m wsizoo_plugin_pixelmamba.pretraining IMAGES/train OUT [KEY=VALUE ...]

The keys, and where they are from: `configs/imagenet.yaml` beside this file. OUT is a folder of
`wsizoo.save`, which `init:` of a run takes; until it is there, `OUT.state.pt` beside it, from which
the same command goes on after an interruption. On several GPUs: torchrun --nproc-per-node 8 -m
wsizoo_plugin_pixelmamba.pretraining ...
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from pathlib import Path

import wsizoo
from wsizoo.errors import DataError
from wsizoo.train.processes import start_processes
from wsizoo_plugin_pixelmamba.images import ImageFolder
from wsizoo_plugin_pixelmamba.pretraining_config import CONFIG, Pretraining, read_config
from wsizoo_plugin_pixelmamba.pretraining_run import Run, check_classes, top1
from wsizoo_plugin_pixelmamba.vim import seed_from_file

log = logging.getLogger(__name__)
USE = "To begin from: wsizoo train ... init=FOLDER, at any scale and size of regions."
LIMITS = (
    "Trained on natural images alone and never shown a slide: what it answers of one means nothing."
)
FACTS = "pre-training"


def pretrain(folder: Path | str, out: Path | str, config: Pretraining) -> wsizoo.SlideModel:
    """Train on `folder/<class>/*.jpg` and save the model in `out`.

    What is there already of the same config is loaded, or gone on with. The model states neither
    the scale nor the size of its regions, as natural images have no scale.

    Raises:
        DataError: no images by class, or `out` or the state beside it is of another config.
        NotFoundError: no Lightning Fabric (extra `train` of wsizoo), no such device.
        SpecError: a device that has no meaning. WeightsError: `config.vim` is no Vim.
    """
    out, images = Path(out), ImageFolder.of(Path(folder))
    if out.exists():
        return _finished(out, images, config)
    fabric = start_processes(config.device, "32-true", key="device")
    model = _begun(images, config).to(fabric.device).train()
    run = Run(model, images, config, Path(f"{out}.state.pt"), fabric)
    run.resume()
    told = _train(run)
    model.trained = True
    model.facts = {FACTS: config.numbers(), "images": len(images), **told}
    model.facts |= {"intended_use": USE, "limits": LIMITS}
    model.eval()
    if run.first:
        wsizoo.save(model, out)
        run.state.unlink(missing_ok=True)
    return model


def _finished(out: Path, images: ImageFolder, config: Pretraining) -> wsizoo.SlideModel:
    """The model that is there. Raises DataError: it is of another pre-training."""
    model = wsizoo.load(out)
    there = {**model.facts.get(FACTS, {}), "images": model.facts.get("images")}
    for name, mine in {**config.numbers(), "images": len(images)}.items():
        if there.get(name) != mine:
            raise DataError(
                f"'{out}' holds another model: {name} is {there.get(name)}, now {mine}. Choose "
                "another OUT, or delete it"
            )
    log.info("'%s' is finished already", out)
    return model


def _begun(images: ImageFolder, config: Pretraining) -> wsizoo.SlideModel:
    """The network before its first step; what could fail later is tried."""
    names = ",".join(f'"{name}"' for name in images.classes)
    told = (f"head.classes=[{names}]", "encoder.patch_size=null", "encoder.mpp=null")
    model = wsizoo.build(f"pixel-mamba-{config.size}", *told, seed=config.seed)
    if config.validation:
        check_classes(ImageFolder.of(Path(config.validation)), images.classes, config.validation)
    if config.vim:
        filled = [i + 1 for i in seed_from_file(model, config.vim)]
        log.info("layers %s begin as those of '%s'", filled, config.vim)
    return model


def _train(run: Run) -> dict[str, float]:
    """All epochs; what there is to say of the last."""
    config, told = run.config, {}
    while run.epoch < config.epochs:
        loss = run.finish_epoch()
        run.keep()
        line = f"epoch {run.epoch}/{config.epochs}  lr {run.lr:.3g}  loss {loss:.4f}"
        told = {"loss": loss}
        if config.validation:
            run.model.eval()
            seen = (config.edge, config.images_at_once, config.workers)
            told["top-1"] = top1(run.model, config.validation, *seen, run.fabric)
            run.model.train()
            line += f"  top-1 {told['top-1']:.2%}"
        if run.first:
            log.info(line)
    return told


def main() -> None:
    """The command."""
    keys = [line for line in CONFIG.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    parser = argparse.ArgumentParser(
        "python -m wsizoo_plugin_pixelmamba.pretraining",
        description="Pre-train a Pixel-Mamba on a folder with a folder of images a class.",
        epilog=f"Example:\n  %(prog)s imagenet/train pretrained size=6m validation=imagenet/val\n\n"
        f"{inspect.getdoc(Pretraining)}\n\nDefaults, from {CONFIG}:\n  " + "\n  ".join(keys),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", help="folder with a folder of images a class")
    parser.add_argument("out", help="folder of the trained model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="see below")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        pretrain(given.images, given.out, read_config(given.overrides))
    except wsizoo.WsizooError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from what was kept last")


if __name__ == "__main__":
    main()
