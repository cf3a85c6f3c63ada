"""Reads a target TOML into the frozen dataclasses of `machine`, field by field, and explains it back."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from nnac.errors import TargetError, raise_all
from nnac.targets.machine import Arithmetic, Decoder, Energy, Host, Mac, Memory, MemoryMode, Target, Vector

OPTIONAL = {"energy": Energy, "host": Host}
SECTIONS = {"arithmetic": Arithmetic, "mac": Mac, "vector": Vector, "decoder": Decoder, "memory_mode": MemoryMode}
MEMORIES = ("sram", "weights", "dram", "flash")
MAX_BYTES = 1 << 20


def target_names() -> list[str]:
    """Return the names of the targets that ship with nnac."""
    return sorted(entry.name[:-5] for entry in files("nnac.targets").iterdir() if entry.name.endswith(".toml"))


def load_target(source: str | Path | Target) -> Target:
    """Return the target called `source`, or read from the TOML file at that path.

    Raises:
        TargetError: no such target or file, or the file has unknown, missing or illegal entries (all are listed).
    """
    if isinstance(source, Target):
        return source
    if str(source) in target_names():
        text = files("nnac.targets").joinpath(f"{source}.toml").read_text("utf-8")
        return parse_target(text, str(source))
    return parse_target(_read(Path(source)), str(source))


def _read(path: Path) -> str:
    if path.suffix != ".toml" or not path.is_file():
        raise TargetError(
            f"target {str(path)!r}: neither a known target ({', '.join(target_names())}) nor a .toml file"
        )
    if path.stat().st_size > MAX_BYTES:
        raise TargetError(f"target {str(path)!r}: larger than {MAX_BYTES} bytes, so it is no target description")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"target {str(path)!r}: cannot be read: {error}") from None


def parse_target(text: str, where: str) -> Target:
    """Return the target described by TOML `text`; `where` is named in errors."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"target {where!r}: not TOML: {error}") from None
    return target_from_dict(raw, where)


def target_from_dict(raw: dict[str, Any], where: str) -> Target:
    """Return the target of a nested dict (a TOML file's, or the one that a blob embeds)."""
    problems: list[str] = []
    known = {"name", "description", "clock_mhz", "memory", *SECTIONS, *OPTIONAL}
    problems += [f"unknown entry {key!r}; allowed: {', '.join(sorted(known))}" for key in raw if key not in known]
    parts = {name: _section(kind, raw.get(name, {}), name, problems) for name, kind in SECTIONS.items()}
    parts |= {name: _section(kind, raw[name], name, problems) for name, kind in OPTIONAL.items() if raw.get(name)}
    memory = _memories(raw.get("memory", {}), problems)
    head = _head(raw, problems)
    raise_all(TargetError, f"target {where!r} cannot be used:", problems)
    target = Target(*head, memory=memory, **parts)
    _check_modes(target, where)
    return target


def _head(raw: dict[str, Any], problems: list[str]) -> tuple[str, str, float]:
    for key, kind in (("name", str), ("description", str), ("clock_mhz", (int, float))):
        if not isinstance(raw.get(key), kind) or isinstance(raw.get(key), bool):
            problems.append(f"{key}: found {raw.get(key)!r}, expected {'text' if kind is str else 'a number of MHz'}")
    clock = raw.get("clock_mhz")
    if isinstance(clock, int | float) and not 0 < clock <= 1e5:
        problems.append(f"clock_mhz: found {clock!r}, allowed 0 < clock_mhz <= 100000")
    return raw.get("name", ""), raw.get("description", ""), float(clock) if isinstance(clock, int | float) else 0.0


def _memories(raw: Any, problems: list[str]) -> dict[str, Memory]:
    if not isinstance(raw, dict):
        problems.append("memory: expected sections [memory.sram], [memory.weights], ...")
        return {}
    problems += [f"unknown memory {key!r}; allowed: {', '.join(MEMORIES)}" for key in raw if key not in MEMORIES]
    problems += [f"section [memory.{key}] is missing" for key in MEMORIES[:2] if key not in raw]
    return {key: _section(Memory, raw[key], f"memory.{key}", problems) for key in MEMORIES if key in raw}


def _section(kind: type, raw: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(raw, dict):
        problems.append(f"{where}: expected a section")
        return None
    known = {f.name: f for f in fields(kind)}
    problems += [f"{where}.{key}: unknown; allowed: {', '.join(known)}" for key in raw if key not in known]
    values = {}
    for name, f in known.items():
        if name in raw:
            values[name] = _value(raw[name], f, f"{where}.{name}", problems)
        elif f.default is MISSING:
            problems.append(f"{where}.{name}: missing ({f.metadata['text']}, {f.metadata['unit']})")
    complete = all(name in values or f.default is not MISSING for name, f in known.items())
    return kind(**values) if complete else None


def _value(found: Any, f: Any, where: str, problems: list[str]) -> Any:
    if "allowed" in f.metadata:
        if f.metadata["allowed"] is None:
            problems += [] if isinstance(found, str) else [f"{where}: found {found!r}, expected text"]
        elif found not in f.metadata["allowed"] or isinstance(found, bool) != (f.type == "bool"):
            problems.append(f"{where}: found {found!r}, allowed {', '.join(map(str, f.metadata['allowed']))}")
        return found
    numeric = (int,) if f.type == "int" else (int, float)
    if not isinstance(found, numeric) or isinstance(found, bool):
        problems.append(f"{where}: found {found!r}, expected a number of {f.metadata['unit']} ({f.type})")
    elif not f.metadata["low"] <= found <= f.metadata["high"]:
        problems.append(f"{where}: found {found!r}, allowed {f.metadata['low']} to {f.metadata['high']}")
    return found


def _check_modes(target: Target, where: str) -> None:
    mode = target.memory_mode
    missing = {name for name in (mode.constants, mode.spill) if name not in target.memory}
    if target.mac.zero_skip != "none" and target.mac.dataflow != "weight_stationary":
        raise TargetError(f'target {where!r} cannot be used: mac.zero_skip needs mac.dataflow = "weight_stationary"')
    raise_all(
        TargetError,
        f"target {where!r} cannot be used:",
        [f"memory_mode names {name!r}, but there is no [memory.{name}]" for name in sorted(missing)],
    )


def target_to_dict(target: Target) -> dict[str, Any]:
    """Return the nested dict that `target_from_dict` reads."""
    return asdict(target)


def target_digest(target: Target) -> str:
    """Return the SHA-256 of the target's canonical JSON."""
    return hashlib.sha256(json.dumps(target_to_dict(target), sort_keys=True).encode()).hexdigest()


def explain(target: Target) -> Iterator[tuple[str, str, str, str]]:
    """Yield (entry, value, unit, meaning) for every figure of a target."""
    yield "clock_mhz", f"{target.clock_mhz:g}", "MHz", "clock of all engines"
    sections = {name: getattr(target, name) for name in SECTIONS}
    sections |= {name: getattr(target, name) for name in OPTIONAL if getattr(target, name)}
    sections |= {f"memory.{name}": memory for name, memory in target.memory.items()}
    for name, section in sections.items():
        for f in fields(section):
            value = getattr(section, f.name)
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            yield f"{name}.{f.name}", shown, f.metadata["unit"], f.metadata["text"]
