"""Plain data as a checked dataclass. The only module that imports omegaconf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from wsizoo.errors import SpecError
from wsizoo.names import suggest

__all__ = ["MISSING", "structured"]
Schema = TypeVar("Schema")


def structured(schema: type[Schema], whose: str, content: Mapping[str, Any]) -> Schema:
    """A dataclass of this content, its keys and types checked, in nested dataclasses too.

    Args:
        schema: fields without a value are MISSING, and must be stated.
        whose: what the content is of, for the message.

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
        raise SpecError(f"{whose} states no {error.full_key}") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        where = getattr(error, "full_key", None) or "a field"
        raise SpecError(f"{whose}: {where}: {str(error).splitlines()[0]}") from error
