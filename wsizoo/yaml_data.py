"""YAML as data: no key twice, no code, numbers as people write them, names of classes as typed."""

from __future__ import annotations

import re
from typing import Any

import yaml

NAMES = "classes"  # the key whose list holds names


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError with line and column."""
    return _loaded(text, _Loader.get_single_data)


def read_value(key: str, text: str) -> Any:
    """The value of `key: text` (a command line's). Raises ValueError."""
    return _loaded(text, lambda loader: _value(loader, key, loader.get_single_node()))


def _loaded(text: str, read: Any) -> Any:
    loader = _Loader(text)
    try:
        return read(loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, except for duplicate keys, names of classes and 1e-3."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        named = isinstance(key, str | int | float)
        if not named or key in seen:
            problem = f"'{key}' {'stands here a second time' if named else 'is no name'}"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen[key] = _value(loader, key, value_node)
    return seen


def _value(loader: Any, key: Any, node: yaml.Node | None) -> Any:
    """A value; the names in a list of classes are text, whatever YAML takes yes, 0.10 or null for.

    So `[yes, no]` is ["yes", "no"] and `[0, 1]` is ["0", "1"].
    """
    if node is None:
        return None
    if key == NAMES and isinstance(node, yaml.SequenceNode):
        return [
            item.value
            if isinstance(item, yaml.ScalarNode)
            else loader.construct_object(item, deep=True)
            for item in node.value
        ]
    return loader.construct_object(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {  # YAML 1.1 reads 010 as 8, 1:30 as 90 and 1_0 as 10
    first: [(tag, pattern) for tag, pattern in rules if tag != _INT]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(  # YAML 1.1 reads 1e-3 as text
    _FLOAT, re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
