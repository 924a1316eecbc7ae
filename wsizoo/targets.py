"""From `"package.module:Class"` to an object: import it, call it with arguments that are data."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from wsizoo.errors import PluginError, SpecError
from wsizoo.names import describe, suggest


def load_target(target: str, whose: str) -> Any:
    """Import `"package.module:Name"`; what fails is a PluginError that says whose target it is."""
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        why = describe(error)
        raise PluginError(f"{whose} cannot be imported from '{target}': {why}") from error
    if not hasattr(module, attribute):
        raise PluginError(f"{whose}: '{module_name}' holds no '{attribute}'")
    return getattr(module, attribute)


def call(maker: Any, whose: str, params: dict[str, Any], **given: Any) -> Any:
    """Call a class; arguments it does not know, or lacks, are a SpecError that names them."""
    parameters = inspect.signature(maker).parameters
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    open_names = [n for n, p in parameters.items() if n not in given and "VAR" not in p.kind.name]
    for param in params:
        if param in given or (param not in open_names and not accepts_any):
            raise SpecError(
                f"{whose} has no argument '{param}'. {suggest(param, open_names, 'It takes: ')}"
            )
    empty = inspect.Parameter.empty
    lacking = [n for n in open_names if parameters[n].default is empty and n not in params]
    if lacking:
        part, value = whose.partition(" ")[0], "VALUE"
        if part == "encoder":
            raise SpecError(f"{whose} needs {', '.join(lacking)}: its entry states them as params")
        if lacking[0] == "classes":
            value = "[normal,tumour]"
        raise SpecError(f"{whose} needs {', '.join(lacking)}. Give it: {part}.{lacking[0]}={value}")
    try:
        return maker(**given, **params)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"{whose} cannot be made with {params}: {error}") from error
