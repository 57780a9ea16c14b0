"""Values and names as text for one-line messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

_LONGEST_SHOWN = 60


def show(value: object) -> str:
    """`value` as a user would write it in the file, on one line and cut to 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 4] + " ..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, or that abbreviates it (`lr`); None where none is similar. Case is ignored."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    initials = "".join(word[:1] for word in name.lower().split("_"))
    if len(initials) > 1 and initials in by_lower:
        return by_lower[initials]
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def join(path: str, key: str | int) -> str:
    """`path` and the key below it as one dotted path."""
    return f"{path}.{key}" if path else str(key)
