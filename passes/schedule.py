"""Schedule: wait tokens, so that engines may run beside each other and still see memory as if in program order.

Rules:

1. an instruction waits for what it depends on (see `nnac.hazards`) when that runs on another engine;
2. a wait that an earlier instruction of the same engine has done already is left out;
3. where the decoder may run at most `ahead` of the array, a load waits until no more array instructions than that are
   unfinished in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnac.hazards import dependencies
from nnac.isa import AnyInstruction, Engine


def schedule(instructions: Sequence[AnyInstruction], ahead: int = 0) -> tuple[AnyInstruction, ...]:
    """Return the instructions with the wait tokens that program order demands, and `ahead` (0: no limit)."""
    array = 0
    waited = [[0] * len(Engine) for _ in Engine]
    scheduled = []
    for instruction, needs in zip(instructions, dependencies(instructions), strict=True):
        engine = instruction.engine
        array += engine == Engine.MAC
        if engine == Engine.DECODER and ahead:
            needs = tuple(max(n, array - ahead) if e == Engine.MAC else n for e, n in enumerate(needs))
        done = waited[engine]
        waits = tuple(n if e != engine and n > done[e] else 0 for e, n in enumerate(needs))
        waited[engine] = [max(a, b) for a, b in zip(done, waits, strict=True)]
        scheduled.append(replace(instruction, waits=waits))
    return tuple(scheduled)
