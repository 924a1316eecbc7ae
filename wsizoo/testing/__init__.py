"""Tools for authors of plugins: conformance, parity, op equality, a Hub double.

Names resolve on first use: importing this imports neither torch nor pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Case": "wsizoo.testing.parity_runner",
    "Check": "wsizoo.testing.conformance_suite",
    "HubDouble": "wsizoo.testing.hub",
    "PluginReport": "wsizoo.testing.plugin_check",
    "Result": "wsizoo.testing.conformance_suite",
    "check_component": "wsizoo.testing.conformance_suite",
    "check_op_backend": "wsizoo.testing.ops",
    "check_plugin": "wsizoo.testing.plugin_check",
    "checks": "wsizoo.testing.conformance_suite",
    "compare": "wsizoo.testing.parity_runner",
    "conformance": "wsizoo.testing.conformance_suite",
    "parity": "wsizoo.testing.parity_runner",
    "parity_cases": "wsizoo.testing.parity_runner",
}

if TYPE_CHECKING:
    from wsizoo.testing.conformance_suite import (
        Check,
        Result,
        check_component,
        checks,
        conformance,
    )
    from wsizoo.testing.hub import HubDouble
    from wsizoo.testing.ops import check_op_backend
    from wsizoo.testing.parity_runner import Case, compare, parity, parity_cases
    from wsizoo.testing.plugin_check import PluginReport, check_plugin


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'wsizoo.testing' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


__all__ = [
    "Case",
    "Check",
    "HubDouble",
    "PluginReport",
    "Result",
    "check_component",
    "check_op_backend",
    "check_plugin",
    "checks",
    "compare",
    "conformance",
    "parity",
    "parity_cases",
]
