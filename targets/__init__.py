"""Machines: one TOML per target, and the frozen dataclasses that they are read into."""

from nnac.targets.machine import Arithmetic, Decoder, Energy, Host, Mac, Memory, MemoryMode, Target, Vector
from nnac.targets.reader import (
    explain,
    load_target,
    parse_target,
    target_digest,
    target_from_dict,
    target_names,
    target_to_dict,
)
from nnac.targets.settings import needs_compiling, parse_setting, parse_value, with_settings

__all__ = [
    "Arithmetic",
    "Decoder",
    "Energy",
    "Host",
    "Mac",
    "Memory",
    "MemoryMode",
    "Target",
    "Vector",
    "explain",
    "load_target",
    "needs_compiling",
    "parse_setting",
    "parse_target",
    "parse_value",
    "target_digest",
    "target_from_dict",
    "target_names",
    "target_to_dict",
    "with_settings",
]
