"""wsizoo.doctor: it looks at everything and trips over nothing."""

import builtins
import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest

import wsizoo
from wsizoo import doctor, hub
from wsizoo.doctor import Finding, diagnose
from wsizoo.errors import BagError, GatedError, NotFoundError, SpecError
from wsizoo.interfaces import Aggregator
from wsizoo.plugins import Plugin, discover
from wsizoo.registry import Entry, Registry


def bare_registry() -> Registry:
    return Registry.of(discover(entry_points=[]))


def found(findings: list[Finding], area: str) -> dict[str, Finding]:
    return {f.name: f for f in findings if f.area == area}


def test_every_area_is_looked_at_in_order() -> None:
    areas = list(dict.fromkeys(f.area for f in diagnose(registry=bare_registry())))
    assert areas == [
        "Python", "Core", "Devices", "Extras", "Encoders", "Op backends", "Plugins", "Hub",
    ]  # fmt: skip


def test_what_the_core_needs_works_here_and_is_marked_as_needed() -> None:
    core = found(diagnose(registry=bare_registry()), "Core")
    assert {"torch", "numpy", "openslide", "PIL", "yaml", "huggingface_hub"} <= set(core)
    assert len(core) == len(declared("dependencies"))
    assert all(f.works and f.needed and f.detail for f in core.values())


def test_a_broken_dependency_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "h5py":
            raise OSError("libhdf5.so: cannot open shared object file")
        return known(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    finding = found(diagnose(registry=bare_registry()), "Core")["h5py"]
    assert (finding.works, finding.needed) == (False, True)
    assert finding.detail == "OSError: libhdf5.so: cannot open shared object file"
    assert finding.remedy == "pip install --force-reinstall wsizoo"


def test_a_missing_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2", "No-Such_Module>1; extra == 'tiff'", 'pluggy; extra == "tiff"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    finding = found(diagnose(registry=bare_registry()), "Extras")["tiff"]
    assert (finding.works, finding.needed) == (False, False)
    assert finding.detail == "missing no_such_module"
    assert finding.remedy == 'pip install "wsizoo[tiff]"'


def test_extras_are_those_that_the_project_declares_for_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    extras = found(diagnose(registry=bare_registry()), "Extras")
    assert set(extras) == set(declared("optional-dependencies")) - {"all", "dev"}
    assert "sklearn" in extras["train"].detail and "lightning_fabric" in extras["train"].detail


def declared(field: str) -> Any:
    path = Path(__file__).parent.parent / "pyproject.toml"
    if not path.exists():
        pytest.skip("this is not a checkout")
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"][field]


def test_encoders_that_run_and_those_whose_features_are_read_are_told_apart() -> None:
    encoders = found(diagnose(registry=bare_registry()), "Encoders")
    assert encoders["handcrafted-he"].works
    assert encoders["handcrafted-he"].detail == "208 features, 224 px at 0.5 um/px"
    assert not encoders["uni"].works


def test_an_encoder_that_breaks_is_one_finding_among_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in a plugin")

    monkeypatch.setattr("wsizoo.encoders.loading.why_not", broken)
    findings = diagnose(registry=bare_registry())
    finding = found(findings, "Encoders")["handcrafted-he"]
    assert (finding.works, finding.detail) == (False, "ZeroDivisionError: in a plugin")
    assert found(findings, "Hub")


def test_an_area_that_cannot_be_looked_at_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = builtins.__import__

    def no_ops(name: str, *rest: Any) -> Any:
        if name == "wsizoo.ops":
            raise ImportError("no ops today")
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_ops)
    findings = diagnose(registry=bare_registry())
    assert found(findings, "Op backends")["looking further"].detail == "ImportError: no ops today"
    assert found(findings, "Plugins")["wsizoo"].works


def test_a_plugin_in_quarantine_is_shown_with_its_reason() -> None:
    registry = bare_registry()
    registry.plugins.all.append(Plugin("bad", "wsizoo-plugin-bad", "1", reason="fails on import"))
    finding = found(diagnose(registry=registry), "Plugins")["wsizoo-plugin-bad"]
    assert (finding.works, finding.detail) == (False, "fails on import")


def test_access_to_gated_encoders_is_asked_only_when_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def access(repo: str) -> None:
        asked.append(repo)
        if repo == "them/closed":
            raise GatedError("not granted: https://huggingface.co/them/closed")

    monkeypatch.setattr(hub, "hub_access", access)
    registry = bare_registry()
    registry.encoders.clear()
    for name in ("open", "closed"):
        record = {"gated": True, "repo": f"them/{name}"}
        registry.encoders[name] = Entry(name, record, "wsizoo")
    registry.encoders["no-repo"] = Entry("no-repo", {"gated": True}, "wsizoo")
    assert found(diagnose(registry=registry), "Access") == {}
    assert asked == []
    findings = found(diagnose(access=True, registry=registry), "Access")
    assert {name: f.works for name, f in findings.items()} == {"closed": False, "open": True}
    assert "not granted" in findings["closed"].detail


class Planned(Aggregator):
    """Says what it takes."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, 1)

    def peak_bytes(self, patches: int, patch_size: int, training: bool) -> int:
        return patches * patch_size * (3 if training else 1)


def test_a_plan_is_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wsizoo.build("mean-uni", "head=null")
    model.aggregator = Planned(4)
    given: list[Any] = []
    monkeypatch.setattr("wsizoo.zoo.build", lambda *args, **_: (given.append(args), model)[1])
    monkeypatch.setattr(doctor, "system_bytes", lambda file, key: 7)
    size = model.requires.patch_size or 224
    planned = doctor.plan("mean-uni", 10, "encoder.dim=4")
    assert planned == doctor.Plan(10, size, 7 + 10 * size, 7 + 30 * size)
    assert given == [("mean-uni", "head=null", "encoder.dim=4")]


def test_a_plan_that_cannot_be_made_says_why() -> None:
    with pytest.raises(SpecError, match=r"'mean-uni' does not say what memory it takes"):
        doctor.plan("mean-uni", 10)
    with pytest.raises(SpecError, match=r"a slide of 0 patches, expected 1 or more"):
        doctor.plan("mean-uni", 0)
    with pytest.raises(NotFoundError, match="mean-unni"):
        doctor.plan("mean-unni", 10)


def test_a_trained_folder_is_planned_as_its_model_is(tmp_path: Path) -> None:
    given = ("pixel-mamba-tiny", "head.classes=[a,b]", "encoder.patch_size=64")
    wsizoo.save(wsizoo.build(*given), tmp_path / "model")
    folder = doctor.plan(str(tmp_path / "model"), 900)
    named = doctor.plan("pixel-mamba-tiny", 900, "encoder.patch_size=64")
    for one, other in ((folder.forward, named.forward), (folder.training, named.training)):
        assert abs(one - other) < 5e7  # what this process holds differs a little
    with pytest.raises(BagError, match=r"regions are 100 x 100 px"):
        doctor.plan("pixel-mamba-tiny", 900, "encoder.patch_size=100")
