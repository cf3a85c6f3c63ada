"""Machines: one TOML per target, and the frozen dataclasses that they are read into."""

from nnac.targets.machine import Arithmetic, Decoder, Energy, Mac, Memory, MemoryMode, Target, Vector
from nnac.targets.reader import (
    explain,
    load_target,
    parse_target,
    target_digest,
    target_from_dict,
    target_names,
    target_to_dict,
)

__all__ = [
    "Arithmetic", "Decoder", "Energy", "Mac", "Memory", "MemoryMode", "Target", "Vector",
    "explain", "load_target", "parse_target", "target_digest", "target_from_dict", "target_names", "target_to_dict",
]
