"""Changes to a target by dotted name: what-ifs and sweeps."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from nnac.errors import TargetError
from nnac.targets.machine import Target
from nnac.targets.reader import target_from_dict, target_to_dict


def parse_setting(text: str) -> tuple[str, Any]:
    """Return (dotted name, value) of `name=value`; the value is TOML (a number, true, false) or bare text.

    Raises:
        TargetError: there is no `=` or no name.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip() or not value.strip():
        raise TargetError(f"setting {text!r}: expected name=value, e.g. memory.dram.bytes_per_cycle=2")
    return name.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """Return the TOML value of `text`, or the text itself where it is no TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_settings(target: Target, settings: Mapping[str, Any]) -> Target:
    """Return the target with figures replaced, by dotted name as `nnac targets NAME` lists them.

    Raises:
        TargetError: an unknown name or an illegal value (the reader's message).
    """
    raw = target_to_dict(target)
    for name, value in settings.items():
        *path, last = name.split(".")
        section = raw
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None  # type: ignore[assignment]
        if not isinstance(section, dict) or last not in section or isinstance(section[last], dict):
            raise TargetError(
                f"setting {name!r}: target {target.name!r} has no such figure; `nnac targets {target.name}` lists them"
            )
        section[last] = value
    return target_from_dict(raw, f"{target.name} with {', '.join(f'{k}={v}' for k, v in settings.items())}")


def needs_compiling(before: Target, after: Target) -> list[str]:
    """Return the figures that differ and that a compiled program depends on: sizes, law, memory mode."""
    return [name for name, a, b in _differences(before, after, "") if a != b]


def _differences(before: Any, after: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for f in fields(before):
        a, b, name = getattr(before, f.name), getattr(after, f.name), f"{prefix}{f.name}"
        if is_dataclass(a) and is_dataclass(b):
            found += _differences(a, b, f"{name}.")
        elif isinstance(a, dict):
            for key in a:
                found += _differences(a[key], b[key], f"{name}.{key}.")
        elif f.metadata.get("compiled"):
            found.append((name, a, b))
    return found
