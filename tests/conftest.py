"""Settings for the whole suite: no telemetry, no user cache, no network, few threads."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

_home = tempfile.mkdtemp(prefix="wsizoo-tests-hf-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)

# huggingface_hub reads these once, on import, so they come before anything that may import it.
os.environ["HF_HOME"] = _home
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite that a script started with & ignores Ctrl-C, and so would processes that it interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(1)

import pytest  # noqa: E402

from wsizoo.testing.fixtures import hub, loopback_only  # noqa: E402, F401


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 16 toy slides, a patient each, see `toy_cohort`; for tests that change none."""
    return _cohort(tmp_path_factory, slides=16, per_patient=1)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 32, two slides a patient."""
    return _cohort(tmp_path_factory, slides=32, per_patient=2)


@pytest.fixture
def own_cohort(tmp_path: Path) -> Path:
    """`cohort`, in `tmp_path`, to be changed."""
    from tests.toy_cohort import write_cohort

    write_cohort(tmp_path)
    return tmp_path


def _cohort(factory: pytest.TempPathFactory, **sizes: int) -> Path:
    from tests.toy_cohort import write_cohort  # needs torch, which not every test does

    folder = factory.mktemp("cohort")
    write_cohort(folder, **sizes)
    return folder


@pytest.fixture(autouse=True)
def no_network(loopback_only: list[str]) -> None:  # noqa: F811
    """Every test stays on loopback."""
