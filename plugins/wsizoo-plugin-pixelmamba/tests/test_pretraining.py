"""Pre-training on a folder of images: it learns, goes on where it was, refuses what is wrong."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from wsizoo_plugin_pixelmamba import pretraining
from wsizoo_plugin_pixelmamba.images import ImageFolder, ahead, centre_crop, erase, random_crop
from wsizoo_plugin_pixelmamba.pretraining import pretrain, read_config, top1
from wsizoo_plugin_pixelmamba.pretraining_run import Run

import wsizoo
from wsizoo import Bag, Fingerprint
from wsizoo.errors import DataError, NotFoundError, SpecError
from wsizoo.mamba import VimBlock
from wsizoo.train.loop import common_fingerprint
from wsizoo.train.processes import start_processes

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


def run_of(images, tmp_path, *overrides):
    """A run of a tiny model at its first step."""
    config = read_config([*QUICK, *overrides])
    model = wsizoo.build("pixel-mamba-tiny", "head.classes=[a,b]")
    return Run(model, images, config, tmp_path / "x.state.pt", start_processes("cpu", "32-true"))


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
    told = ["epochs=6", "lr=0.02", "mixup=0.2", f"validation={images}"]
    model = pretrain(images, tmp_path / "out", read_config([*QUICK, *told]))
    assert top1(model, images, 32) == 1.0
    again = wsizoo.load(tmp_path / "out")
    assert again.classes == ["blue", "red"]
    assert again.trained
    assert again.facts["pre-training"]["epochs"] == 6
    assert again.facts["top-1"] == 1.0
    assert not (tmp_path / "out.state.pt").exists()
    new = wsizoo.adapt(tmp_path / "out", "head.classes=[a,b,c]")
    for name, tensor in model.aggregator.state_dict().items():
        assert torch.equal(new.aggregator.state_dict()[name], tensor)


@pytest.mark.parametrize("killed_in", [(2, 0), (1, 1)], ids=["an epoch's first step", "within"])
def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path, monkeypatch, killed_in):
    images = folder_of(tmp_path / "images", n=4)
    config = read_config([*QUICK, "batch_size=4", "state_steps=1"])
    whole = pretrain(images, tmp_path / "whole", config).state_dict()
    real, steps = Run.do, []

    def killed(self, *given):
        steps.append((self.epoch, self.step))
        if steps[-1] == killed_in and steps.count(killed_in) == 1:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(Run, "do", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(images, tmp_path / "cut", config)
    with pytest.raises(
        DataError, match=r"cut\.state\.pt' is of another pre-training: lr was 0\.001"
    ):
        pretrain(images, tmp_path / "cut", read_config([*QUICK, "batch_size=4", "lr=0.1"]))
    resumed = pretrain(images, tmp_path / "cut", config).state_dict()
    assert len(steps) == 3 * 2 + 1  # no step was done twice
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_what_is_finished_is_said_to_be_so_and_never_replaced(tmp_path, monkeypatch, caplog):
    images, config = folder_of(tmp_path / "images", n=2), read_config([*QUICK, "epochs=1"])
    first = pretrain(images, tmp_path / "out", config)
    monkeypatch.setattr(Run, "do", None)
    with caplog.at_level("INFO"):
        again = pretrain(images, tmp_path / "out", config)
    assert "out' is finished already" in caplog.text
    assert torch.equal(again.head.linear.weight, first.head.linear.weight)
    with pytest.raises(
        DataError, match=r"out' holds another model: lr is 0\.001, now 0\.5\. Choose"
    ):
        pretrain(images, tmp_path / "out", read_config([*QUICK, "epochs=1", "lr=0.5"]))


def test_the_first_step_does_not_depend_on_memory_workers_or_the_log(tmp_path):
    images = ImageFolder.of(folder_of(tmp_path, n=8))
    slopes = []
    for told in (["images_at_once=16"], ["images_at_once=4", "workers=0"], ["images_at_once=6"]):
        run = run_of(images, tmp_path, *told, "batch_size=16", "erasing=0.5")
        (parts,) = run.plan()
        run.do(parts, ahead(run.cut, [i for part in parts for i in part], run.config.workers))
        slopes.append([p.grad for p in run.model.parameters()])
    for others in slopes[1:]:
        for a, b in zip(slopes[0], others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_mixing_is_of_images_and_labels_alike(tmp_path):
    images = ImageFolder.of(folder_of(tmp_path, n=2))
    run = run_of(images, tmp_path, "erasing=0.0", "label_smoothing=0.0")
    seen = []
    out = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    run.logits = lambda x: (seen.append(x), out)[1]
    loss = float(run.mean_loss([run.cut(i) for i in (0, 3, 1)]))
    (mixed,) = seen
    colours = mixed.mean((2, 3))  # (3, 3): blue with red, red with blue, blue alone
    cuts = [run.cut(i)[1] for i in (0, 3, 1)]
    pure = run.model.aggregator.normalised(torch.stack(cuts)).mean((2, 3))
    share = float(((colours[0] - pure[1]) / (pure[0] - pure[1]))[0])
    assert 0 < share < 1
    torch.testing.assert_close(colours[1], pure[1] * share + pure[0] * (1 - share))
    torch.testing.assert_close(colours[2], pure[2])
    logs = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), math.log(2)]
    expected = (share * logs[0] + (1 - share) * logs[1] + 2 * logs[2]) / 3
    assert loss == pytest.approx(expected, rel=1e-4)


def test_progress_is_told_within_an_epoch(tmp_path, caplog):
    images = folder_of(tmp_path / "images", n=4)
    told = ["epochs=1", "batch_size=4", "log_steps=1", f"validation={images}"]
    with caplog.at_level("INFO"):
        pretrain(images, tmp_path / "out", read_config([*QUICK, *told]))
    found = [r.getMessage() for r in caplog.records if r.getMessage().startswith("epoch 1/1")]
    assert [line.split("  ")[1].split(" ")[0] for line in found] == ["step", "step", "lr"]
    assert found[0].endswith("images/s")
    assert "top-1" in found[-1]


def test_a_loss_that_is_not_finite_stops_it(tmp_path):
    images = folder_of(tmp_path / "images", n=4)
    told = ["lr=1e30", "start_lr=1e30", "batch_size=4", "warmup_epochs=0"]
    with pytest.raises(DataError, match=r"the loss is (nan|inf) in epoch \d, step \d"):
        pretrain(images, tmp_path / "out", read_config([*QUICK, *told]))


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
    touched = (erase(images, 0.25, [rng] * 200) != 0).flatten(1).any(1).float().mean()
    assert 0.15 < touched < 0.35
    assert not images.any()
    assert torch.equal(erase(images, 0.0, [rng] * 200), images)


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
        top1(wsizoo.build("pixel-mamba-tiny", "head.classes=[a,b]"), tmp_path, 32)


@pytest.mark.parametrize("bits", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused(tmp_path, bits):
    folder_of(tmp_path, n=1)
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[bits]
    file = tmp_path / "red" / ("deep.png" if bits == "I;16" else "deep.tif")
    Image.fromarray(np.full((8, 8), 40_000, kind)).save(file)
    with pytest.raises(DataError, match=r"deep\.(png|tif)' is of Pillow's mode \S+, grey of more"):
        ImageFolder((file,), (0,), ("red",)).open(0)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("batch_size=0", "batch_size is 0, expected 1 or more"),
        ("workers=-1", "workers is -1, expected 0 or more"),
        ("erasing=2", r"erasing is 2\.0, expected 0 to 1"),
        ("images_at_once=3", "images_at_once is 3, expected an even number"),
        ("edge=50", "edge is 50, expected a multiple of 32, such as edge=64"),
        ("size=7m", "size is '7m', expected one of 6m, 21m, tiny"),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_read(told, message):
    with pytest.raises(SpecError, match=message):
        read_config([*QUICK, told])


def test_devices_that_are_not_here_are_refused(tmp_path):
    images = folder_of(tmp_path / "images", n=1)
    with pytest.raises(SpecError, match=r"^device is 'tpu', expected auto, cpu"):
        pretrain(images, tmp_path / "out", read_config([*QUICK, "device=tpu"]))
    with pytest.raises(NotFoundError, match=r"no device 'cuda:99' here; device=cpu is"):
        pretrain(images, tmp_path / "out", read_config([*QUICK, "device=cuda:99"]))


def test_validation_images_of_other_classes_are_refused_before_it_begins(tmp_path):
    images = folder_of(tmp_path / "images", n=1)
    other = folder_of(tmp_path / "other", n=1)
    (other / "red").rename(other / "green")
    with pytest.raises(DataError, match=r"other' has classes \('blue', 'green'\), the model"):
        pretrain(images, tmp_path / "out", read_config([*QUICK, f"validation={other}"]))


def test_a_model_of_images_begins_one_of_slides_at_any_scale_and_says_what_it_is(tmp_path):
    images = folder_of(tmp_path / "images", n=1)
    pretrain(images, tmp_path / "pre", read_config([*QUICK, "epochs=1"]))
    stored = wsizoo.load(tmp_path / "pre")
    assert (stored.requires.mpp, stored.requires.patch_size) == (None, None)
    assert "never shown a slide" in stored.facts["limits"]
    assert "never shown a slide" in (tmp_path / "pre" / "README.md").read_text()
    for size, mpp in ((32, 8.0), (64, 2.0)):
        seen = Fingerprint("pixels", mpp=mpp, patch_size=size)
        begun = wsizoo.adapt(tmp_path / "pre", "head.classes=[a,b]")
        slides = [
            Bag(
                torch.zeros(1, 3, size, size).byte(),
                coords=torch.zeros(1, 2).long(),
                spacing=float(size),
                encoder=seen,
                slide_id=name,
            )
            for name in "ab"
        ]
        assert common_fingerprint(begun, slides).to_json() == seen.to_json()


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    images = folder_of(tmp_path / "images", n=4)
    told = [*QUICK, "images_at_once=2", "epochs=1", "batch_size=8", "device=cpu"]
    alone = pretrain(images, tmp_path / "alone", read_config(told)).state_dict()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node", "2", "-m", "wsizoo_plugin_pixelmamba.pretraining"]
    command = [*torchrun, str(images), str(tmp_path / "two"), *told, f"validation={images}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("top-1") == 1
    for name, tensor in wsizoo.load(tmp_path / "two").state_dict().items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)


def test_a_published_vim_seeds_a_pre_training(tmp_path, caplog):
    images = folder_of(tmp_path / "images", n=1)
    block = VimBlock(192, divide_out=True).state_dict()
    donor = {"norm_f.weight": torch.ones(192)}
    for i in range(24):
        donor[f"layers.{i}.norm.weight"] = torch.ones(192)
        donor |= {f"layers.{i}.mixer.{k}": v for k, v in block.items()}
    torch.save({"model": donor}, tmp_path / "vim.pth")
    config = read_config(["size=6m", "edge=32", f"vim={tmp_path / 'vim.pth'}"])
    with caplog.at_level("INFO"):
        model = pretraining._begun(ImageFolder.of(images), config)
    assert "layers [9, 10," in caplog.text
    layer = model.aggregator.network.layers[8].mixer
    assert torch.equal(layer.A_b_log, block["A_b_log"])


def test_the_help_tells_the_keys_and_an_example():
    command = [sys.executable, "-m", "wsizoo_plugin_pixelmamba.pretraining", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "imagenet/train pretrained size=6m" in told
    assert "erasing: share of the images" in told
    assert "\n  batch_size: 1024\n" in told


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
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_is_wrong_is_one_line_on_the_command_line(tmp_path):
    command = [sys.executable, "-m", "wsizoo_plugin_pixelmamba.pretraining", str(tmp_path)]
    done = subprocess.run([*command, "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"'{tmp_path}' holds 0 folders, expected one a class, 2 or more"
