"""Which parity cases nobody here reads: a named skip a system; silence is no pass."""

import importlib.metadata
import json

import pytest

from wsizoo.testing.parity_runner import META, parity_folders

PLUGIN_OF = {"mamba": "wsizoo-plugin-pixelmamba"}  # where the names differ


def counted() -> dict[str, int]:
    """Number of cases of each system below the parity folders."""
    cases = {
        (meta["system"], meta["case"])
        for folder in parity_folders()
        for meta in (json.loads(path.read_text()) for path in folder.glob(f"**/{META}"))
    }
    systems = [system for system, _ in cases]
    return {system: systems.count(system) for system in sorted(set(systems))}


@pytest.mark.parity
@pytest.mark.parametrize(("system", "count"), counted().items() or [("none", 0)])
def test_cases_of_a_system_are_read_by_its_plugin(system: str, count: int) -> None:
    plugin = PLUGIN_OF.get(system, f"wsizoo-plugin-{system}")
    try:
        importlib.metadata.version(plugin)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{count} cases of {system}: {plugin}, which reads them all, is not installed")
