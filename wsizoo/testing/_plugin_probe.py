"""Run in a fresh process: what happens when a plugin's modules are imported.

    python -m wsizoo.testing._plugin_probe MODULE TARGET...

The answer is one line of JSON. Everything that a plugin prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

HEAVY = [
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "h5py",
    "sklearn",
    "PIL",
    "matplotlib",
    "torchvision",
    "timm",
    "transformers",
    "triton",
    "openslide",
    "tifffile",
    "huggingface_hub",
    "omegaconf",
    "spconv",
    "mamba_ssm",
    "flash_attn",
    "ray",
]
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def probe(module: str, targets: list[str]) -> dict[str, Any]:
    """Import the hook module, then each target.

    Returns:
        `hooks_error` (None: it imports), `heavy` modules that it pulled in, `hooks_network` and
        `targets_network` (hosts it tried to reach), `errors` by target.
    """
    reached: list[str] = []

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in NETWORK:
            reached.append(f"{event} {args[1:] if event == 'socket.connect' else args}")
            raise OSError("importing a plugin must not use the network")

    importlib.import_module("wsizoo.hookspecs")
    before = set(sys.modules)
    sys.addaudithook(audit)
    answer: dict[str, Any] = {"hooks_error": _import(module), "errors": {}}
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    answer["heavy"] = sorted(new & set(HEAVY))
    answer["hooks_network"] = list(reached)
    reached.clear()
    for target in targets:
        error = _import(*target.partition(":")[::2])
        if error:
            answer["errors"][target] = error
    answer["targets_network"] = list(reached)
    return answer


def _import(module: str, attribute: str = "") -> str | None:
    try:
        found = importlib.import_module(module)
        if attribute:
            getattr(found, attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    stdout, sys.stdout = sys.stdout, sys.stderr
    result = probe(sys.argv[1], sys.argv[2:])
    stdout.write(json.dumps(result) + "\n")
    stdout.flush()
