"""Start-up: importing and listing against importing torch."""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._measure import interleaved, report

ENTRIES = 100
LIST = """
import sys
from pathlib import Path
from wsizoo.plugins import Plugins, installed
from wsizoo.registry import Registry
import wsizoo.registry
plugins = installed()
plugins.all[0].registry = Path(sys.argv.pop(1))
registry = Registry.of(plugins)
wsizoo.registry.default.cache_clear()
wsizoo.registry.default.__wrapped__
import wsizoo.catalogue, wsizoo.cli.zoo
wsizoo.cli.zoo.default = lambda: registry
wsizoo.catalogue.default = lambda: registry
from wsizoo.cli import main
main()
"""


def run() -> None:
    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as scratch:
        write_registry(Path(scratch))
        torch, empty, imported, listed, listed_100 = interleaved(
            lambda: python("-c", "import torch"),
            lambda: python("-c", "pass"),
            lambda: python("-c", "import wsizoo; wsizoo.list_models()"),
            lambda: python("-m", "wsizoo", "list"),
            lambda: python("-c", LIST, scratch, "list"),
        )
    report("import wsizoo and list_models()", imported, torch, "import torch")
    report("wsizoo list", listed, torch, "import torch", 0.25)
    report(f"wsizoo list with {ENTRIES} entries", listed_100, torch, "import torch", 0.25)
    report("python itself", empty, torch, "import torch")


def write_registry(folder: Path) -> None:
    """A registry file of 100 entries of the usual length."""
    entry = """
  model-{i}:
    summary: Gated attention MIL on UNI features, entry {i}
    licence: Apache-2.0
    source: https://arxiv.org/abs/1802.04712
    encoder: {{name: uni, mpp: 0.5, patch_size: 256}}
    aggregator: {{name: abmil, dim: 512, attention: 384, gated: true, dropout: 0.25}}
    head: {{name: classification, classes: [normal, tumour]}}
    weights: {{repo: owner/model-{i}, revision: {commit}, sha256: {digest}}}
"""
    body = "".join(entry.format(i=i, commit="a" * 40, digest="b" * 64) for i in range(ENTRIES))
    (folder / "registry.yaml").write_text("models:" + body)
