"""Errors that a caller can act on; every message says what was found, where, what is allowed, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class NnacError(Exception):
    """Base of all errors that nnac raises on purpose."""


class ModelError(NnacError):
    """The model, its inputs or its calibration data cannot be used as they are."""


class TargetError(NnacError):
    """The machine description is wrong or asks for something that does not exist."""


class CapacityError(NnacError):
    """The program does not fit the machine or a budget: required, available, excess.

    Args:
        what: the tensor, layer or budget that does not fit.
        required: what it needs, in `unit`.
        available: what there is, in `unit`.
        unit: bytes or cycles.
        advice: what the caller can do about it.
    """

    def __init__(self, what: str, required: int, available: int, unit: str = "bytes", advice: str = "") -> None:
        self.what, self.required, self.available, self.excess = what, required, available, required - available
        tail = f"; {advice}" if advice else ""
        super().__init__(f"{what}: required {required:,} {unit}, available {available:,}, excess {self.excess:,}{tail}")


class ProgramError(NnacError):
    """A blob is damaged, foreign, or does not do what its header says."""


def raise_all(error: type[NnacError], headline: str, problems: Sequence[str]) -> None:
    """Raise one error that lists every problem, or return when there is none."""
    if problems:
        raise error("\n".join([headline, *(f"  - {problem}" for problem in problems)]))


def one_line(text: object, longest: int = 300) -> str:
    """Return `text` (of a foreign error, say) as one printable line of bounded length, never empty."""
    line = " ".join(str(text).split()) or type(text).__name__
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= longest else line[: longest - 3] + "..."
