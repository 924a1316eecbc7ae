import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from wsizoo.encoders import libraries
from wsizoo.encoders.libraries import import_library, mend_torchvision
from wsizoo.errors import NotFoundError, PluginError

ROOT = Path(__file__).parent.parent


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_library_can_be_imported_first_thing(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    program = f"from wsizoo.encoders.libraries import import_library as i; print(i({library!r}))"
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert f"'{library}'" in done.stdout


def test_torchvision_is_mended_only_where_it_would_fail() -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    modules = "from wsizoo.encoders import batches, libraries, loading, networks;"
    untouched = run(modules + "import torchvision")  # importing ours mends nothing
    mend = "libraries.mend_torchvision();"
    call = "torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    mended = run(f"{modules} {mend} {mend} import torch, torchvision.transforms.v2; {call}")
    if untouched.returncode:
        assert "operator torchvision::nms does not exist" in untouched.stderr
        told = "Could not run 'torchvision::nms'|no kernel|not implemented|NotImplementedError"
        assert mended.returncode and re.search(told, mended.stderr)  # declared, not faked
        assert "in <module>" in mended.stderr and "import_module" not in mended.stderr
    else:
        assert mended.returncode == 0, mended.stderr


def test_a_library_that_is_not_there_is_named_with_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "mend_torchvision", lambda: None)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(NotFoundError, match=r'timm is not installed\. .*pip install "wsizoo\[enc'):
        import_library("timm")


@pytest.mark.parametrize(
    "error", [RuntimeError("no such operator"), ModuleNotFoundError("No module", name="tokenizers")]
)
def test_a_library_that_is_broken_is_told_with_the_cause(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "mend_torchvision", lambda: None)

    def broken(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    told = rf"transformers is installed but cannot be imported \({type(error).__name__}: {error}"
    with pytest.raises(PluginError, match=told):
        import_library("transformers")


def test_without_torchvision_nothing_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib, "import_module", tried.append)
    mend_torchvision()
    assert tried == []
