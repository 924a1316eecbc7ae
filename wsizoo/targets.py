"""From `"package.module:Class"` to an object: import it, call it with arguments that are data."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from wsizoo.errors import PluginError, SpecError
from wsizoo.names import describe, suggest

GIVEN = ("in_dim", "n_outputs", "task", "instance_dim")  # by wsizoo, to the constructor of a part
REQUIRED = "(required)"  # instead of a default
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


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
    check_kinds(maker, whose, params)
    try:
        return maker(**given, **params)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"{whose} cannot be made with {params}: {error}") from error


def options_of(maker: Any) -> dict[str, Any]:
    """The options of a part and their defaults, in order; `REQUIRED` for one that has none.

    Those that it takes as `**options` are looked up in the class that it names as `options_type`,
    or in its bases. What wsizoo gives, such as `in_dim`, is left out.
    """
    found: dict[str, inspect.Parameter] = {}
    named = [maker, maker.options_type] if hasattr(maker, "options_type") else inspect.getmro(maker)
    for each in named:
        told = inspect.signature(each).parameters.values()
        own = [
            p for p in told if p.name not in found and (each is maker or p.default is not p.empty)
        ]
        found |= {p.name: p for p in own}
        if all(p.kind is not p.VAR_KEYWORD for p in told):
            break
    return {
        name: REQUIRED if p.default is p.empty else p.default
        for name, p in found.items()
        if name not in GIVEN and "VAR" not in p.kind.name
    }


def named(maker: Any, **facts: Any) -> dict[str, Any]:
    """Those of the facts that the class's constructor names; a part need not take them all."""
    parameters = inspect.signature(maker).parameters
    return {name: value for name, value in facts.items() if name in parameters}


def check_kinds(maker: Any, whose: str, params: dict[str, Any]) -> None:
    """Raise SpecError for a text where a number is annotated, a number for a bool, and the like.

    Arguments that a class hands on to its bases are looked up there. Only plain kinds, lists and
    unions of them are checked.
    """
    hints: dict[str, Any] = {}
    for each in reversed(inspect.getmro(maker)) if inspect.isclass(maker) else (maker,):
        try:
            hints |= get_type_hints(each.__init__ if inspect.isclass(each) else each)
        except (NameError, TypeError, AttributeError):  # names for a type checker alone
            continue
    for name, value in params.items():
        hint = hints.get(name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        told = [_told(kind) for kind in kinds if kind is not type(None)]
        if told and all(told) and not any(_is_of(value, kind) for kind in kinds):
            wanted = [t for t in told if t != KINDS[int] or KINDS[float] not in told]
            raise SpecError(f"{whose}: {name} is {value!r}, expected {' or '.join(wanted)}")


def _told(kind: Any) -> str:
    """A kind in words; "" of one that is not checked."""
    return "a list" if get_origin(kind) in (list, Sequence) else KINDS.get(kind, "")


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (list, Sequence):
        return isinstance(value, list | tuple)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, (int, float) if kind is float else kind)
