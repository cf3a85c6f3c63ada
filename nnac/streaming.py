"""Streaming: a program that is called once per period, with its states kept in between.

Contract. Call n (0, 1, ...) arrives at n periods; a call starts when it has arrived and the one before it has ended,
so late calls queue and none is dropped. It misses its deadline when it ends after the next call has arrived. The first
call loads every constant; where all constants have a place of their own in the weight buffer, the calls behind it load
none, else every call loads all of them. Keeping states costs what the program's own instructions say. The real-time
factor is the time of a later call over the period: above 1 the queue grows for ever. Energy per second is that of later
calls at the rate of the signal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from nnac.errors import NnacError
from nnac.program import Program
from nnac.targets import Target
from nnac.timing import Timeline, simulate

STEPS = 100


@dataclass(frozen=True, slots=True)
class Streaming:
    """A program called once per period.

    Attributes:
        first: the first call, which loads every constant.
        steady: every call behind it.
        period_ms: milliseconds from one call to the next.
        waits_ms: per call, milliseconds from its arrival to its end, the queue included.
    """

    first: Timeline
    steady: Timeline
    period_ms: float
    waits_ms: tuple[float, ...]

    @property
    def resident(self) -> bool:
        """Whether constants stay in the weight buffer from call to call."""
        return self.steady.warm

    @property
    def real_time_factor(self) -> float:
        return self.steady.milliseconds / self.period_ms

    @property
    def misses(self) -> int:
        """Calls that end after the next one has arrived."""
        return sum(wait > self.period_ms for wait in self.waits_ms)

    @property
    def microwatts(self) -> float:
        """Energy per second of signal in microjoules; 0 where the target has no energy table."""
        return sum(self.steady.energy.values()) / 1e6 * 1e3 / self.period_ms


def stream(program: Program, period_ms: float, steps: int = STEPS, target: Target | None = None) -> Streaming:
    """Return how a validated program keeps up with a signal.

    Args:
        period_ms: milliseconds from one call to the next.
        steps: calls that are played.
        target: another machine (see `timing.what_if`).

    Raises:
        NnacError: the period is not positive, or there is no step.
    """
    if not (isfinite(period_ms) and period_ms > 0) or steps < 1:
        raise NnacError(f"streaming takes a positive period and at least one step, found {period_ms:g} ms, {steps}")
    first, steady = simulate(program, target), simulate(program, target, warm=True)
    lasting = [first.milliseconds, *[steady.milliseconds] * (steps - 1)]
    arrivals = [n * period_ms for n in range(steps)]
    ends = queue(zip(arrivals, lasting, strict=True))
    return Streaming(first, steady, period_ms, tuple(e - a for e, a in zip(ends, arrivals, strict=True)))


def queue(calls: Iterable[tuple[float, float]]) -> list[float]:
    """Return when each call ends, given its arrival and how long it lasts: on one machine, in order."""
    ends, free = [], 0.0
    for arrival, lasting in calls:
        free = max(free, arrival) + lasting
        ends.append(free)
    return ends
