"""Orders in which a machine may execute a program: all of them must give the same bits, or a wait token is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nnac.isa import AnyInstruction, Engine
from nnac.timing import Timeline


def completion_order(timeline: Timeline) -> list[int]:
    """Return the instructions in the order in which timing predicts that they finish."""
    spans = timeline.spans
    return sorted(range(len(spans)), key=lambda i: (spans[i].end, spans[i].start, i))


def adversarial_order(instructions: Sequence[AnyInstruction], seed: int) -> list[int]:
    """Return a random order that the tokens allow; engines take turns in long, uneven runs, so that they drift apart.

    The instructions must be free of deadlock.
    """
    rng = np.random.default_rng(seed)
    queues = {engine: [i for i, x in enumerate(instructions) if x.engine == engine] for engine in Engine}
    done, order = [0] * len(Engine), list[int]()
    while len(order) < len(instructions):
        for engine in rng.permutation(len(Engine)):
            run = int(rng.geometric(float(rng.choice([0.02, 0.3, 0.9]))))
            order += list(_take(instructions, queues[Engine(engine)], done, run))
    return order


def _take(instructions: Sequence[AnyInstruction], queue: Sequence[int], done: list[int], run: int) -> Iterator[int]:
    """Yield up to `run` instructions of one queue that are ready, and count them done."""
    for index in queue[(first := done[instructions[queue[0]].engine] if queue else 0) : first + run]:
        if any(have < need for have, need in zip(done, instructions[index].waits, strict=True)):
            return
        done[instructions[index].engine] += 1
        yield index
