"""Plain data as a checked dataclass. The only module that imports omegaconf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from wsizoo.errors import SpecError
from wsizoo.names import suggest

__all__ = ["MISSING", "structured"]
Schema = TypeVar("Schema")
KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def structured(
    schema: type[Schema], whose: str, content: Mapping[str, Any], *, typed: bool = False
) -> Schema:
    """A dataclass of this content, its keys and types checked, in nested dataclasses too.

    Args:
        schema: fields without a value are MISSING, and must be stated.
        whose: what the content is of, for the message. typed: KEY=VALUE may state a field too.

    Raises:
        SpecError: an unknown key (the near one named), a wrong type, a missing field.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(content)))
        return cast(Schema, OmegaConf.to_object(merged))
    except ConfigKeyError as error:
        known = [f.name for f in fields(error.object_type)]  # type: ignore[arg-type]
        hint = suggest(str(error.key), known, "Fields: ")
        raise SpecError(f"{whose}: unknown field '{error.full_key}'. {hint}") from error
    except MissingMandatoryValue as error:
        key = error.full_key
        hint = f": write it there, or type {key}=..." if typed else ""
        raise SpecError(f"{whose} states no {key}{hint}") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        where = getattr(error, "full_key", None) or "a field"
        expected = _expected(error) or f": {str(error).splitlines()[0]}"
        raise SpecError(f"{whose}: {where}{expected}") from error


def _expected(error: Exception) -> str:
    """` is 'abc', expected a whole number`; "" where the field is of another kind than `KINDS`."""
    key, owner = getattr(error, "key", None), getattr(error, "object_type", None)
    if is_dataclass(owner):
        wanted = get_type_hints(owner).get(str(key))
    else:
        wanted = next(iter(get_args(getattr(error, "ref_type", None))), None)  # an item of a list
    kinds = [kind for kind in (wanted, *get_args(wanted)) if kind in KINDS or get_origin(kind)]
    if isinstance(wanted, UnionType):
        kinds = kinds[1:]  # int | None: int
    if not kinds:
        return ""
    value = getattr(error, "value", None)
    shown = "null" if value is None else repr(value)
    if get_origin(kinds[0]) is list:
        told = "a list" if value is None else f"a list: {getattr(error, 'full_key', key)}=[{value}]"
        return f" is {shown}, expected {told}"
    return f" is {shown}, expected {KINDS[kinds[0]]}"
