"""Two stages on conversations: what learns in each, going on, and what is refused."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from wsizoo_plugin_sparselearn.vlm import tiny
from wsizoo_plugin_sparselearn.vlm.__main__ import main
from wsizoo_plugin_sparselearn.vlm.formats import write_conversations
from wsizoo_plugin_sparselearn.vlm.questions import Conversation, Turn
from wsizoo_plugin_sparselearn.vlm.training import begun, items_of, train
from wsizoo_plugin_sparselearn.vlm.training_config import Training, read_config
from wsizoo_plugin_sparselearn.vlm.training_run import Run

import wsizoo
from wsizoo.errors import BagError, DataError, FingerprintError, SpecError, StrictnessError
from wsizoo.fingerprint import Fingerprint
from wsizoo.plugins import installed
from wsizoo.registry import Entry, Registry
from wsizoo.slides.store import write_bag
from wsizoo.weights import read_tensors

QUICK = ["batch_size=2", "device=cpu", "start=toy", "epochs=2", "state_steps=1", "log_steps=1"]
WORDS = ("ring", "sheet", "cord", "gland")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    base = tiny.folder(tmp_path_factory.mktemp("base"))
    record = {
        "summary": "a toy",
        "licence": "MIT",
        "source": "a test",
        "encoder": {"name": "made-up", "dim": 8},
        "model": {
            "name": "slidevlm",
            "lm": {"folder": str(base), "dtype": "float32"},
            "selector": {"name": "sparselearn", "k": 4, "warm_up": 0.5, "freeze_rest": False},
        },
    }
    return Registry(installed(), models={"toy": Entry("toy", record, "a test")})


def slide(name: str) -> wsizoo.Bag:
    made = tiny.bag(9, seed=int(name))
    return made.replace(slide_id=name, encoder=Fingerprint("made-up", mpp=0.5))


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    path = tmp_path / "talks.json"
    turns = [(Turn("which is seen ?\n<image>", word), Turn("yes ?", "no .")) for word in WORDS]
    write_conversations(path, [Conversation(i, (str(i),), t) for i, t in enumerate(turns)])
    return path


def config(*texts: str) -> Training:
    return read_config([*QUICK, *texts])[0]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts of which something learned."""
    return {n.split(".")[1] for n, t in before.items() if not torch.equal(t, after[n])}


def state(model: wsizoo.SlideModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.inference_state().items()}


def test_the_first_stage_teaches_selector_and_projector(
    known: Registry, talks: Path, tmp_path: Path
) -> None:
    before = state(begun(config(), [], known))
    model = train(talks, slide, tmp_path / "out", config(), registry=known)
    assert moved(before, state(model)) == {"selector", "projector"}
    assert model.trained and model.requires == Fingerprint("made-up", mpp=0.5)
    again = wsizoo.load(tmp_path / "out", registry=known)
    assert again.facts["conversations"] == 4
    assert math.isfinite(again.facts["losses"]["answers"])
    assert torch.equal(again(slide("1")).embedding, model(slide("1")).embedding)
    assert not (tmp_path / "out.state.pt").exists()


def test_the_second_stage_teaches_projector_and_lora_on_hard_patches(
    known: Registry, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(talks, slide, tmp_path / "one", config("epochs=1"), registry=known)
    second = config("stage=instruct", f"start={tmp_path / 'one'}")
    assert (second.lr, second.selection) == (2e-5, "hard")
    before = begun(second, [], known)
    assert {n: t for n, t in state(before).items() if "lora" not in n}.keys() == state(first).keys()
    assert not moved(state(first), state(before))
    assert any("lora" in name for name in state(before))
    sizes = []
    shown = type(first.whole).shown
    monkeypatch.setattr(
        type(first.whole), "shown", lambda *a: sizes.append(len(shown(*a).tokens)) or shown(*a)
    )
    model = train(talks, slide, tmp_path / "two", second, registry=known)
    assert set(sizes) == {4}
    assert moved(state(before), state(model)) == {"projector", "lora"}
    tensors, _ = read_tensors(tmp_path / "two" / "model.safetensors")
    assert {name.split(".")[1] for name in tensors} == {"selector", "projector", "lora"}
    third = begun(config("stage=instruct", f"start={tmp_path / 'two'}"), [], known)
    assert not moved(state(model), state(third))


def test_lora_may_be_left_out_of_the_second_stage(known: Registry) -> None:
    plain = begun(config("stage=instruct"), ["model.lora=null"], known)
    assert not any("lora" in name for name in plain.inference_state())
    few = begun(config("stage=instruct"), ["model.lora={r: 2}"], known)
    assert few.whole.lora.r == 2


def test_a_run_goes_on_with_the_same_numbers(
    known: Registry, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = ["model.lora={r: 2, dropout: 0.3}"]
    whole = state(train(talks, slide, tmp_path / "whole", config(), lora, known))
    do, done = Run.do, []

    def stop_after(run: Run) -> None:
        if len(done) == 3:
            done.append(0)
            raise KeyboardInterrupt
        done.append(run.step)
        do(run)

    monkeypatch.setattr(Run, "do", stop_after)
    with pytest.raises(KeyboardInterrupt):
        train(talks, slide, tmp_path / "cut", config(), lora, known)
    kept = torch.load(tmp_path / "cut.state.pt", weights_only=True)
    assert not [n for n in kept["model"] if n.startswith("whole.lm") and "lora_" not in n]
    with pytest.raises(DataError, match=r"is of another training: lr was 0.001, now 0.5"):
        train(talks, slide, tmp_path / "cut", config("lr=0.5"), lora, known)
    resumed = state(train(talks, slide, tmp_path / "cut", config(), lora, known))
    assert done == [0, 1, 2, 0, 3]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_what_is_finished_is_loaded_and_never_replaced(
    known: Registry, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train(talks, slide, tmp_path / "out", config("epochs=1"), registry=known)
    monkeypatch.setattr(Run, "do", None)
    again = train(talks, slide, tmp_path / "out", config("epochs=1"), registry=known)
    assert not moved(state(model), state(again))
    with pytest.raises(DataError, match=r"holds another model: lr is 0.001, now 0.5. Choose"):
        train(talks, slide, tmp_path / "out", config("epochs=1", "lr=0.5"), registry=known)


def test_a_model_learns_what_a_slide_shows(known: Registry, tmp_path: Path) -> None:
    asked = [(Turn("<image>\nwhich is seen ?", word),) for word in WORDS]
    talks = tmp_path / "talks.json"
    write_conversations(talks, [Conversation(i, (str(i),), turn) for i, turn in enumerate(asked)])
    texts = ("stage=instruct", "epochs=40", "batch_size=4", "lr=0.001", "state_steps=1000")
    changes = ["model.lora={r: 8, dropout: 0.0}", "model.selector={name: norm, k: 4}"]
    vlm = train(talks, slide, tmp_path / "out", config(*texts), changes, known).whole
    said = [vlm.choose(slide(str(i)), "which is seen ?", WORDS, "sum").text for i in range(4)]
    assert said == list(WORDS)


def test_a_selector_may_begin_as_one_that_learned_before_an_aggregator(
    known: Registry, talks: Path, tmp_path: Path
) -> None:
    record = known.models["toy"].record
    own = {"model": None, "aggregator": {"name": "mean"}, "selector": record["model"]["selector"]}
    others = Registry(installed(), {"mil": Entry("mil", {**record, **own}, "a test")})
    mil = wsizoo.build("mil", seed=5, registry=others)
    mil.requires = Fingerprint("made-up", mpp=0.5)
    mil.trained = True
    wsizoo.save(mil, tmp_path / "mil")
    stage = config("selection=hard", f"selector_from={tmp_path / 'mil'}")
    model = train(talks, slide, tmp_path / "out", stage, registry=known)
    found, wanted = model.whole.selector.inference_state(), mil.selector.inference_state()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(StrictnessError, match="weights of the selector of 'mil' do not fit"):
        begun(stage, ["model.selector={name: sparselearn, hidden: 3}"], known)
    with pytest.raises(FingerprintError, match=r"the selector of 'mil' and 'toy' were encoded"):
        begun(stage, ["encoder.mpp=0.25"], known)


def test_a_run_of_wsizoo_may_train_it_as_a_classifier(known: Registry, tmp_path: Path) -> None:
    from wsizoo.train.loop import fit

    texts = ("model.question=which pattern is seen ?", "model.options=[ring,sheet]")
    model = wsizoo.build("toy", *texts, registry=known)
    bags = [slide(str(i)).replace(target={"label": i % 2}) for i in range(4)]
    before = state(model)
    fit(model, bags, epochs=2, lr=1e-3)
    assert moved(before, state(model)) == {"selector", "projector"}
    wsizoo.save(model, tmp_path / "saved")
    again = wsizoo.load(tmp_path / "saved", registry=known)
    assert torch.equal(again(bags[0]).logits, model(bags[0]).logits)


def test_the_rate_rises_and_then_falls_to_nothing() -> None:
    stage = config("warmup=0.2")
    assert [stage.rate(x) for x in (0, 0.1, 0.2, 0.6)] == pytest.approx([0, 0.5, 1, 0.5])
    assert stage.rate(1) == pytest.approx(0)
    assert read_config([])[0].rate(0) == 1


def test_published_rates_are_the_defaults() -> None:
    align, of_model = read_config(["model.lm.folder=x", "encoder.mpp=0.5"])
    assert of_model == ["model.lm.folder=x", "encoder.mpp=0.5"]
    assert (align.stage, align.lr, align.epochs, align.batch_size) == ("align", 1e-3, 5, 8)
    instruct, _ = read_config(["stage=instruct", "start=x"])
    assert (instruct.lr, instruct.epochs, instruct.weight_decay) == (2e-5, 2, 0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("stage=third", "training: stage is third, expected align or instruct"),
        ("selection=random", "selection is random, expected soft or hard"),
        ("epochs=0", "epochs is 0, expected 1 or more"),
        ("lr=-1", "lr is -1.0, expected 0 or more"),
        ("warmup=1", "warmup is 1.0, expected a share from 0 to below 1"),
        ("betas=[0.9]", r"betas is \[0.9\], expected two numbers"),
        ("epoch=3", "unknown field 'epoch'. Did you mean"),
    ],
)
def test_keys_that_cannot_be(text: str, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        read_config([text])


def test_the_second_stage_needs_a_start() -> None:
    with pytest.raises(SpecError, match="training states no start"):
        read_config(["stage=instruct"])


def test_a_start_that_is_no_slidevlm_is_refused(known: Registry) -> None:
    record = {**known.models["toy"].record, "model": None, "aggregator": {"name": "mean"}}
    others = Registry(installed(), models={"mean": Entry("mean", record, "a test")})
    with pytest.raises(SpecError, match="start is 'mean', which is no slidevlm"):
        begun(config("start=mean"), [], others)


@pytest.mark.parametrize(
    ("each", "match"),
    [
        (None, "there are no conversations to train on"),
        (Conversation(7, (), (Turn("<image>", "a"),)), "conversation 7 is about 0 slides"),
        (Conversation("x", ("1", "2"), ()), "conversation 'x' is about 2 slides, expected 1"),
        (Conversation(7, ("1",), (Turn("a ?", "a"),)), "7 holds 0 placeholders <image>"),
        (
            Conversation(7, ("1",), (Turn("<image> a <image>", "a"),)),
            "7 holds 2 placeholders <image>, expected 1, in its first",
        ),
        (
            Conversation(7, ("1",), (Turn("a", "a"), Turn("<image>", "a"))),
            "7 holds 1 placeholders <image>, expected 1, in its first turn",
        ),
    ],
)
def test_conversations_that_teach_nothing(each: Conversation | None, match: str) -> None:
    with pytest.raises(DataError, match=match):
        items_of([] if each is None else [each])


def test_the_placeholder_goes_to_the_front() -> None:
    each = Conversation(1, ("s",), (Turn("a ?\n<image>", "b"), Turn("c", "d")))
    assert items_of([each]) == [("s", [("<image>\na ?", "b"), ("c", "d")])]


def test_features_of_another_encoder_or_kind_stop_it(
    known: Registry, talks: Path, tmp_path: Path
) -> None:
    def other(name: str) -> wsizoo.Bag:
        mpp = 0.25 if name == "3" else 0.5
        return slide(name).replace(encoder=Fingerprint("made-up", mpp=mpp))

    with pytest.raises(FingerprintError, match=r"mpp 0.5; those of slide '3' .* mpp 0.25"):
        train(talks, other, tmp_path / "out", config(), registry=known)
    with pytest.raises(BagError, match="has no coords"):
        train(
            talks,
            lambda n: slide(n).replace(coords=None),
            tmp_path / "out",
            config(),
            registry=known,
        )


def test_a_loss_that_is_not_finite_names_the_slide(
    known: Registry, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM

    nan = {"answers": torch.tensor(math.nan, requires_grad=True)}
    monkeypatch.setattr(SlideVLM, "conversation_losses", lambda *_: nan)
    with pytest.raises(DataError, match=r"'answers' of slide '\d' is nan in step 1; .*lr=0.0001"):
        train(talks, slide, tmp_path / "out", config(), registry=known)


def test_gradients_of_a_step_are_those_of_its_mean_loss(
    known: Registry, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads: dict[str, Any] = {}
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    do = Run.do

    def once(run: Run) -> None:
        do(run)
        grads["found"] = [p.grad.clone() for p in run.learning]
        run.step -= 1
        items = run.shown()
        run.optimiser.zero_grad()
        bags = [run.bag(name) for name, _ in items]
        losses = [
            run.vlm.conversation_losses([b], [t])["answers"]
            for b, (_, t) in zip(bags, items, strict=True)
        ]
        torch.stack(losses).mean().backward()
        grads["expected"] = [p.grad.clone() for p in run.learning]
        run.step = run.total

    monkeypatch.setattr(Run, "do", once)
    texts = ("selection=hard", "clip=1e9")
    train(talks, slide, tmp_path / "out", config(*texts), registry=known)
    for found, expected in zip(grads["found"], grads["expected"], strict=True):
        torch.testing.assert_close(found, expected)


def written(folder: Path) -> Path:
    folder.mkdir()
    for i in range(4):
        write_bag(slide(str(i)), folder / f"{i}.h5")
    return folder


def test_the_command_trains_and_names_what_is_missing(
    talks: Path, tmp_path: Path, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsizoo_plugin_sparselearn.vlm import training

    monkeypatch.setattr(training, "default", lambda: known)
    features = written(tmp_path / "features")
    line = ["train", str(talks), str(features), "-o", str(tmp_path / "out"), *QUICK]
    done = CliRunner().invoke(main, line, catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"'\S+\.json', \d+ rows, sha256 [0-9a-f]{64}", done.output)
    assert wsizoo.load(tmp_path / "out", registry=known).trained
    (features / "2.h5").unlink()
    with pytest.raises(DataError, match=r"1 of 4 slides of .* have no features in .*, first '2'"):
        CliRunner().invoke(main, [*line[:3], "-o", "x", *QUICK], catch_exceptions=False)


def test_the_last_step_and_where_the_model_lies_are_told(
    talks: Path, tmp_path: Path, known: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wsizoo_plugin_sparselearn")
    train(talks, slide, tmp_path / "out", config("epochs=1", "log_steps=100"), registry=known)
    last, where = caplog.messages[-2:]
    total = re.fullmatch(r"step (\d+)/(\d+)  answers \d.*", last)
    assert total and total[1] == total[2]
    assert where == f"the model is in '{tmp_path / 'out'}'"


def test_the_command_line_says_what_it_is() -> None:
    line = [sys.executable, "-m", "wsizoo_plugin_sparselearn.vlm", "train", "--help"]
    told = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "stage=align" in told and "start=OUT_OF_ALIGN" in told


def test_two_processes_end_with_the_weights_of_one(
    known: Registry, talks: Path, tmp_path: Path
) -> None:
    alone = state(train(talks, slide, tmp_path / "alone", config("batch_size=3"), (), known))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    base = known.models["toy"].record["model"]["lm"]["folder"]
    line += ["-m", "wsizoo_plugin_sparselearn.vlm", "train", str(talks)]
    line += [str(written(tmp_path / "features")), "-o", str(tmp_path / "two"), *QUICK]
    line += ["batch_size=3", "start=slidevlm-qwen2.5-7b-conch", "encoder={name: made-up, dim: 8}"]
    line += [f"model.lm={{folder: {base}, dtype: float32}}"]
    line += ["model.selector={name: sparselearn, k: 4, warm_up: 0.5, freeze_rest: false}"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = wsizoo.load(tmp_path / "two").inference_state()
    assert found.keys() == alone.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)
