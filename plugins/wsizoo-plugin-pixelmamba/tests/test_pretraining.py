"""Pre-training on a folder of images: it learns, goes on where it was, refuses what is wrong."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from wsizoo_plugin_pixelmamba import pretraining
from wsizoo_plugin_pixelmamba.images import ImageFolder, centre_crop, erase, random_crop
from wsizoo_plugin_pixelmamba.pretraining import pretrain, read_config, top1

import wsizoo
from wsizoo.errors import DataError, SpecError

QUICK = ["size=tiny", "edge=32", "epochs=3", "warmup_epochs=1", "batch_size=8", "images_at_once=4"]


def folder_of(path, n=8, edges=(40, 48)):
    """Two classes of noise, one red and one blue."""
    rng = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (path / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 60, (*edges, 3))
            pixels[..., channel] += 180
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{i}.png")
    return path


def test_the_shipped_config_is_the_paper_s():
    config = read_config()
    assert (config.size, config.epochs, config.batch_size, config.edge) == ("6m", 300, 1024, 224)
    assert (config.lr, config.weight_decay) == (1e-3, 0.05)
    rates = [config.rate(epoch) for epoch in (0, 2.5, 5, 152.5, 300)]
    middle = (1e-3 + 1e-5) / 2
    expected = [1e-6, 1e-6 + (1e-3 - 1e-6) / 2, 1e-3, middle, 1e-5]
    assert rates == pytest.approx(expected)


def test_it_learns_to_tell_red_from_blue_and_is_saved(tmp_path):
    images = folder_of(tmp_path / "images")
    config = read_config([*QUICK, "epochs=6", "lr=0.02", "mixup=0.2"])
    model = pretrain(images, tmp_path / "out", config)
    assert top1(model, images) == 1.0
    again = wsizoo.load(tmp_path / "out")
    assert again.classes == ["blue", "red"]
    assert again.trained
    assert again.facts["pre-training"]["epochs"] == 6
    new = wsizoo.adapt(tmp_path / "out", "head.classes=[a,b,c]")
    for name, tensor in model.aggregator.state_dict().items():
        assert torch.equal(new.aggregator.state_dict()[name], tensor)


def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path, monkeypatch):
    images, config = folder_of(tmp_path / "images", n=4), read_config(QUICK)
    whole = pretrain(images, tmp_path / "whole", config).state_dict()
    real, passes = pretraining._Run.epoch, []

    def killed(self, epoch):
        if epoch == 2 and not passes:
            passes.append(epoch)
            raise KeyboardInterrupt
        return real(self, epoch)

    monkeypatch.setattr(pretraining._Run, "epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(images, tmp_path / "cut", config)
    resumed = pretrain(images, tmp_path / "cut", config).state_dict()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    with pytest.raises(DataError, match=r"cut\.state\.pt' is of another config: delete it"):
        pretrain(images, tmp_path / "cut", read_config([*QUICK, "lr=0.1"]))


def test_gradients_do_not_depend_on_how_many_images_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pretraining, "random_crop", lambda image, edge, *_: centre_crop(image, edge)
    )
    images = ImageFolder.of(folder_of(tmp_path, n=4))
    slopes = []
    for at_once in (8, 3):
        config = read_config([*QUICK, "mixup=0.0", "erasing=0.0", f"images_at_once={at_once}"])
        model = wsizoo.build("pixel-mamba-tiny", "head.classes=[a,b]")
        run = pretraining._Run(model, images, config, tmp_path / "state.pt")
        run.step(range(8), np.random.default_rng(0))
        slopes.append([p.grad for p in model.parameters()])
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_mixing_is_of_images_and_labels_alike(tmp_path):
    images = ImageFolder.of(folder_of(tmp_path, n=1))
    config = read_config([*QUICK, "erasing=0.0", "label_smoothing=0.0"])
    model = wsizoo.build("pixel-mamba-tiny", "head.classes=[a,b]")
    run = pretraining._Run(model, images, config, tmp_path / "state.pt")
    seen = []
    run.logits = lambda x: (seen.append(x), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))[1]
    loss = float(run.loss([0, 1], np.random.default_rng(0)))
    (mixed,) = seen
    colours = mixed.mean((2, 3))  # (2, 3): the first image more blue, by the share
    rng = np.random.default_rng(0)
    cuts = [random_crop(images.open(i), 32, 0.08, rng) for i in (0, 1)]
    pure = model.aggregator.normalised(torch.stack(cuts)).mean((2, 3))
    share = float(((colours[0] - pure[1]) / (pure[0] - pure[1]))[0])
    logs = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), math.log(2)]
    expected = (share * logs[0] + (1 - share) * logs[1] + logs[2]) / 2
    assert loss == pytest.approx(expected, rel=1e-4)


def test_crops_are_within_the_image_and_of_the_asked_size():
    image = Image.fromarray(np.full((10, 90, 3), 7, np.uint8))
    rng = np.random.default_rng(0)
    for _ in range(20):
        cut = random_crop(image, 16, 0.08, rng)
        assert cut.shape == (3, 16, 16)
        assert set(cut.unique().tolist()) == {7}
    assert centre_crop(image, 16).shape == (3, 16, 16)


def test_erasing_takes_the_share_of_images_that_is_asked_for():
    images, rng = torch.zeros(200, 3, 16, 16), np.random.default_rng(0)
    touched = (erase(images, 0.25, rng) != 0).flatten(1).any(1).float().mean()
    assert 0.15 < touched < 0.35
    assert not images.any()
    assert torch.equal(erase(images, 0.0, rng), images)


def test_what_is_no_folder_of_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds 0 folders, expected one a class"):
        ImageFolder.of(tmp_path)
    folder_of(tmp_path, n=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty' holds no image"):
        ImageFolder.of(tmp_path)
    (tmp_path / "empty" / "x.png").write_bytes(b"nothing")
    images = ImageFolder.of(tmp_path)
    with pytest.raises(DataError, match=r"x\.png' cannot be decoded"):
        images.open(images.classes.index("empty"))
    with pytest.raises(DataError, match=r"has classes .*'empty'.*, the model"):
        top1(wsizoo.build("pixel-mamba-tiny", "head.classes=[a,b]"), tmp_path)


def test_a_wrong_key_is_refused():
    with pytest.raises(SpecError, match=r"pre-training: unknown field 'epoch'\. Did you mean"):
        read_config(["epoch=3"])


def test_it_runs_as_a_command(tmp_path):
    images = folder_of(tmp_path / "images", n=2)
    command = [sys.executable, "-m", "wsizoo_plugin_pixelmamba.pretraining", str(images)]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), *QUICK, "epochs=1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_is_wrong_is_one_line_on_the_command_line(tmp_path):
    command = [sys.executable, "-m", "wsizoo_plugin_pixelmamba.pretraining", str(tmp_path)]
    done = subprocess.run([*command, "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"'{tmp_path}' holds 0 folders, expected one a class, 2 or more"
