"""Settings for the whole suite: no telemetry, no user cache, no network, few threads."""

import atexit
import os
import shutil
import sys
import tempfile

_home = tempfile.mkdtemp(prefix="wsizoo-tests-hf-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)

# huggingface_hub reads these once, on import, so they come before anything that may import it.
os.environ["HF_HOME"] = _home
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(1)

import pytest  # noqa: E402

from wsizoo.testing.fixtures import hub, loopback_only  # noqa: E402, F401


@pytest.fixture(autouse=True)
def no_network(loopback_only: list[str]) -> None:  # noqa: F811
    """Every test stays on loopback."""
