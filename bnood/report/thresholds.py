"""The thresholds of a verdict with their reasons, which the documentation of `ClaimOptions` holds and nothing else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from bnood.study.claim.options import ClaimOptions

# "name: text" or "name, other: text", as a field stands in a docstring's "Args:" or "Attributes:".
_FIELD = re.compile(r"\s*([A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*)\s*:\s+(\S.*)")
_CODE = re.compile(r"`+([^`]*)`+")
_HEADING = re.compile(r"[A-Z]\w*:\s*$")


def thresholds(given: object) -> list[tuple[str, str, str]]:
    """(name, value, reason) of each threshold in a verdict's `thresholds`; "" where no reason is known."""
    if not isinstance(given, Mapping):
        return []
    reasons = field_reasons(ClaimOptions)
    return [(str(name), _value(value), reasons.get(str(name), "")) for name, value in given.items()]


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def field_reasons(described: type) -> dict[str, str]:
    """What a class' docstring says of each field under "Args:" or "Attributes:", each as one line of plain text.

    A field begins at the indentation of the section's first line; deeper lines go on with it, and the section ends at
    the first line that is less indented, or at another heading.
    """
    found: dict[str, list[str]] = {}
    names: list[str] = []
    within, indent = False, -1
    for line in (inspect.getdoc(described) or "").splitlines():
        if _HEADING.match(line):
            within, indent, names = line.startswith(("Args:", "Attributes:")), -1, []
            continue
        if not within or not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent < 0 else indent
        if depth < indent:
            within = False
        elif depth > indent:
            for name in names:
                found[name].append(line.strip())
        elif field := _FIELD.match(line):
            names = [name.strip() for name in field[1].split(",")]
            found |= {name: [field[2].strip()] for name in names}
    return {name: _CODE.sub("“\\1”", " ".join(parts)) for name, parts in found.items()}
