"""What all sections have in common: their base, and the types of fields that several have."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fewshot_ray.spec.wording import show

_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\})")
_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4_000
"""Limits of file systems; the path's leaves room for names below it."""


def distinct(items: list[Any]) -> list[Any]:
    """The items. Raises ValueError where one is given twice."""
    for index, item in enumerate(items):
        if item in items[:index]:
            raise ValueError(f"{show(item)} is given twice; once is right")
    return items


def _place(place: str) -> str:
    if (unset := _VARIABLE.search(place)) and not os.path.exists(place):
        raise ValueError(f"{show(place)} names {unset[0]}, which isn't set; a path or URL is right")
    if "://" in place:
        return place
    path = os.path.expanduser(place)
    if path.startswith("~"):
        raise ValueError(f"{show(place)} begins with a home directory that isn't there; a path or URL is right")
    if any(len(os.fsencode(name)) > _MOST_NAME_BYTES for name in path.split("/")) or len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise ValueError(f"{show(place)} is too long for a path; a path or URL is right")
    return place


Text = Annotated[str, Field(min_length=1)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_place)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are never converted, infinities are refused, instances are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True, serialize_by_alias=True
    )
