"""Schedule: wait tokens, so that engines may run beside each other and still see memory as if in program order.

Rules:

1. an instruction waits for what it depends on (see `nnac.hazards`) when that runs on another engine;
2. a wait that an earlier instruction of the same engine has done already is left out;
3. all rounds of a loop wait alike: for the same instructions counted from the round's own (see `periodic`);
4. where the decoder may run at most `ahead` of the array, a load waits until no more array instructions than that are
   unfinished in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnac.hazards import Counts, dependencies
from nnac.isa import AnyInstruction, Engine, Loop


def schedule(instructions: Sequence[AnyInstruction], ahead: int = 0) -> list[Counts]:
    """Return the wait tokens of instructions that program order demands, and `ahead` (0: no limit)."""
    array, tokens = 0, []
    waited = [[0] * len(Engine) for _ in Engine]
    for instruction, needs in zip(instructions, dependencies(instructions), strict=True):
        engine = instruction.engine
        array += engine == Engine.MAC
        if engine == Engine.DECODER and ahead:
            needs[Engine.MAC] = max(needs[Engine.MAC], array - ahead)
        done = waited[engine]
        for other, need in enumerate(needs):
            if need > done[other]:
                done[other] = need
            else:
                needs[other] = 0
        tokens.append(tuple(needs))
    return tokens


def with_tokens(instructions: Sequence[AnyInstruction], tokens: Sequence[Counts]) -> tuple[AnyInstruction, ...]:
    """Return the instructions with these wait tokens."""
    return tuple(replace(i, waits=waits) for i, waits in zip(instructions, tokens, strict=True))


def periodic(engines: Sequence[Engine], tokens: Sequence[Counts], loops: Sequence[Loop]) -> list[Counts]:
    """Return wait tokens that are equal in all rounds of a loop, counted from the round.

    A token only grows by that, and names instructions in front of its own if it did so before.
    """
    result = list(tokens)
    for loop in loops:
        body = engines[loop.start : loop.start + loop.body]
        advance = [body.count(engine) for engine in Engine]
        for first in range(loop.start, loop.start + loop.body):
            rounds = range(first, loop.start + loop.body * loop.count, loop.body)
            waits = _common([result[index] for index in rounds], advance)
            for index, common in zip(rounds, waits, strict=True):
                result[index] = common
    return result


def _common(waits: Sequence[Counts], advance: Sequence[int]) -> list[Counts]:
    """Return the tokens of all rounds: per engine the latest that any round needs, or none where no round waits."""
    bases = [max(0, *(w[e] - k * step for k, w in enumerate(waits))) for e, step in enumerate(advance)]
    needed = [any(w[e] for w in waits) for e in range(len(advance))]
    return [tuple(bases[e] + k * step if needed[e] else 0 for e, step in enumerate(advance)) for k in range(len(waits))]
