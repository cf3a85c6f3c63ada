"""What every instruction is: plain integers of declared widths, an engine, the bytes that it reads and writes."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple


class Engine(IntEnum):
    """In-order queues that run beside each other."""

    DMA_IN = 0
    DMA_OUT = 1
    DECODER = 2
    MAC = 3
    VECTOR = 4
    HOST = 5

    @property
    def label(self) -> str:
        return self.name.lower()


class Space(IntEnum):
    """Address spaces, named as in a target's [memory.*] sections."""

    SRAM = 0
    WEIGHTS = 1
    DRAM = 2
    FLASH = 3

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = tuple(space.name.lower() for space in Space)


class Range(NamedTuple):
    """Bytes [start, end) of one memory."""

    space: Space
    start: int
    end: int


CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q"}


def entry(code: str, count: int = 1, default: Any = None, **more: bool) -> Any:
    """Declare a field: its width, and how many values it holds (0: any number up to 255, with a length byte)."""
    metadata = {"code": code, "count": count, **more}
    return field(metadata=metadata) if default is None else field(metadata=metadata, default=default)


def address(count: int = 1, default: Any = None) -> Any:
    """Declare a field that says where bytes lie, or several: what an instruction costs does not depend on it."""
    return entry("u32", count, default, address=True)


@functools.cache
def _form(kind: Any) -> Callable[[Any], object]:
    """Return what reads an instruction's form."""
    return attrgetter(*[f.name for f in fields(kind) if f.name != "waits" and "address" not in f.metadata])


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Base: the wait tokens, and the ranges that the subclass reads and writes.

    Not an `ABC`: a compilation matches on instructions some hundred thousand times, and `isinstance` of those is slow.
    """

    opcode: ClassVar[int]
    waits: tuple[int, ...] = entry("u32", len(Engine), (0,) * len(Engine))

    @property
    def form(self) -> object:
        """All but addresses and wait tokens: what decides what it costs."""
        kind: Any = type(self)
        return kind, _form(kind)(self)

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """Who executes it."""

    @abstractmethod
    def reads(self) -> tuple[Range, ...]:
        """Return the bytes that it may read."""

    @abstractmethod
    def writes(self) -> tuple[Range, ...]:
        """Return the bytes that it may write."""


def volume(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    count = 1
    for side in shape:
        count *= side
    return count


def row(start: int, count: int, bits: int) -> Range:
    """Return the scratchpad bytes of `count` elements behind each other."""
    return Range(Space.SRAM, start, start + count * bits // 8)


def strided(space: Space, start: int, shape: tuple[int, ...], strides: tuple[int, ...], width: int = 1) -> Range:
    """Return the smallest range that holds every byte of a strided view of elements of `width` bytes."""
    spans = [(side - 1) * stride for side, stride in zip(shape, strides, strict=True)]
    return Range(space, start + sum(min(s, 0) for s in spans), start + sum(max(s, 0) for s in spans) + width)
