"""Which layers get weights below eight bits, and how: the answer to `--weights`.

A configuration is a number of bits for all layers, an automatic budget, or a TOML file:

    bits = 5                      # all layers
    generator = "lloyd_max"
    [op.Dense]                    # all layers of one operator
    bits = 4
    [node."conv1*"]               # layers by name; glob patterns
    bits = 8

The narrower rule wins: name over operator over all. Eight bits is plain int8.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nnac.errors import ModelError, raise_all

GENERATORS = (
    "lloyd_max",
    "uniform",
    "mu_law",
    "power",
    "power_of_sqrt2",
    "fp4",
    "ternary",
    "binary",
    "gaussian_median",
    "double_rounding",
)
ASSIGNERS = ("nearest", "gptq")


@dataclass(frozen=True, slots=True)
class Choice:
    """How one layer's weights are encoded.

    Attributes:
        bits: index width, 1 to 8; 8 is plain int8.
        generator: what proposes the levels.
        assigner: what chooses a level per weight.
        groups: groups of output channels with a table each.
        clustered: the weights must be clustered already (to at most 2 ** bits values), or it is an error.
    """

    bits: int = 8
    generator: str = "lloyd_max"
    assigner: str = "nearest"
    groups: int = 1
    clustered: bool = False


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """Choices by rule.

    Attributes:
        default: for layers that no rule matches.
        operators: (operator, changed fields).
        nodes: (glob pattern on the node's name, changed fields), later ones win.
        budget: ("bytes", n) or ("db", x) for an automatic choice of bits under a budget, or None.
    """

    default: Choice = Choice()
    operators: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    nodes: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    budget: tuple[str, float] | None = None

    def choice(self, name: str, op: str) -> Choice:
        """Return the choice for one layer."""
        choice = self.default
        for operator, changes in self.operators:
            choice = replace(choice, **changes) if operator == op else choice
        for pattern, changes in self.nodes:
            choice = replace(choice, **changes) if fnmatchcase(name, pattern) else choice
        return choice

    def check(self, layers: Sequence[tuple[str, str]]) -> None:
        """Raise when a rule matches no layer of (name, operator)."""
        names, operators = [name for name, _ in layers], {op for _, op in layers}
        problems = [
            f"[node.{pattern!r}] matches no layer"
            for pattern, _ in self.nodes
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
        problems += [
            f"[op.{op}] matches no layer; layers with weights are {', '.join(sorted(operators))}"
            for op, _ in self.operators
            if op not in operators
        ]
        raise_all(
            ModelError,
            f"weights: rules without a layer (the layers: {', '.join(map(repr, names[:12]))}"
            f"{' ...' if len(names) > 12 else ''}):",
            problems,
        )


def parse_weights(text: str | int | Path | WeightPlan) -> WeightPlan:
    """Return the plan of `--weights`: bits, `bits:generator:assigner`, `auto:BYTES`, `auto:12.5dB`, or a TOML file.

    Raises:
        ModelError: none of these, or an illegal value.
    """
    if isinstance(text, WeightPlan):
        return text
    first, *rest = str(text).split(":")
    if first == "auto" and len(rest) == 1:
        return WeightPlan(budget=_budget(rest[0]))
    if first.isdigit() and len(rest) <= 2:
        fields = dict(zip(("bits", "generator", "assigner"), (int(first), *rest), strict=False))
        return WeightPlan(default=_choice(fields, "--weights"))
    if Path(str(text)).suffix == ".toml":
        return _read(Path(str(text)))
    raise ModelError(
        f"weights {str(text)!r}: expected bits (1 to 8), bits:generator:assigner, auto:BYTES, auto:DECIBELdB, or "
        f"a .toml file"
    )


def _budget(text: str) -> tuple[str, float]:
    kind, number = ("db", text[:-2]) if text.lower().endswith("db") else ("bytes", text)
    if not re.fullmatch(r"[0-9]{1,15}" if kind == "bytes" else r"-?[0-9]{1,4}(\.[0-9]{1,9})?", number):
        raise ModelError(f"weights auto:{text}: expected a number of bytes, or decibels as in auto:30dB")
    return kind, float(number)


def _read(path: Path) -> WeightPlan:
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"weights {str(path)!r}: cannot be read: {error}") from None
    rules = {key: raw.pop(key, {}) for key in ("op", "node")}
    default = _choice(raw, str(path))
    checked = {
        key: tuple((name, _changes(changes, f"{path} [{key}.{name}]")) for name, changes in table.items())
        for key, table in rules.items()
    }
    return WeightPlan(default, checked["op"], checked["node"])


def _choice(raw: Mapping[str, Any], where: str) -> Choice:
    return replace(Choice(), **_changes(raw, where))


def _changes(raw: Any, where: str) -> Mapping[str, Any]:
    """Return the fields of one rule, checked."""
    if not isinstance(raw, Mapping):
        raise ModelError(f"{where}: expected a section")
    legal: dict[str, Any] = {
        "bits": range(1, 9),
        "generator": GENERATORS,
        "assigner": ASSIGNERS,
        "groups": range(1, 65536),
        "clustered": (True, False),
    }
    problems = [f"{key}: unknown; allowed: {', '.join(legal)}" for key in raw if key not in legal]
    problems += [
        f"{key}: found {value!r}, allowed {_shown(legal[key])}"
        for key, value in raw.items()
        if key in legal and (value not in legal[key] or isinstance(value, bool) != (key == "clustered"))
    ]
    raise_all(ModelError, f"{where}:", problems)
    return dict(raw)


def _shown(allowed: Any) -> str:
    return f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
