"""Compile the three parts of a transducer, decode on the emulator, and say what it takes. No torch.

    python -m examples.transducer.measure FOLDER --pool test.npz [--target nna8-tiny] [--host]

FOLDER holds what `train.py` has exported. The word error rate, the calls and their order come from decoding on the
blob; the waiting times and the traffic from playing those calls with the blob's own timing (see `nnac.transducer`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

import nnac
from examples.transducer.data import Pool
from examples.transducer.features import STEP_MS, WIDTH
from nnac.compiled import CompiledModel
from nnac.errors import NnacError
from nnac.program import dumps, write_file
from nnac.report.account import to_json
from nnac.report.host import host_account
from nnac.timing import simulate
from nnac.transducer import PARTS, Decoding, Transducer, Utterance, evaluate, percentiles, waiting

TARGETS: Final = "nna8-tiny", "nna8"
RESULT: Final = "result.json"
EMBEDDING: Final = "embedding.npy"
PROBE: Final = 20
"""Utterances that the second target's blob decodes, too: the two have one arithmetic."""
FRAGILE: Final = {"joiner": ("Tanh", "logits.product", "logits")}
"""What decides between tokens at last, and would run in float on the host where int8 is not trusted with it."""


def transducer(folder: Path, target: str, hosted: Mapping[str, Sequence[str]] | None = None) -> Transducer:
    """Return the compiled parts as one.

    Args:
        hosted: operators that run on the host, by part.
    """

    def compiled(part: str) -> CompiledModel:
        host = (hosted or {}).get(part, "allow")
        return nnac.compile(folder / f"{part}.onnx", target, encodings=folder / f"{part}.encodings", host=host)

    return Transducer(*map(compiled, PARTS), embedding=np.load(folder / EMBEDDING))


def spoken(pool: Pool) -> list[Utterance]:
    """Return a pool's utterances; words are tokens."""
    return [Utterance(each.features.reshape(-1, 1, 1, WIDTH), [digit + 1 for digit in each.digits]) for each in pool]


def decode(model: Transducer, utterances: Sequence[Utterance]) -> tuple[float, tuple[Decoding, ...]]:
    """Return the word error rate and the decodings."""
    found = evaluate(model, utterances, STEP_MS)
    return found.word_error_rate, found.decodings


def costs(model: Transducer, decodings: Sequence[Decoding]) -> dict[str, Any]:
    """Return what the decodings take on a transducer's machine: milliseconds, bytes, and where the blobs' bytes are."""
    table = model.costs()
    waits = [waiting(each, table, STEP_MS) for each in decodings]
    steps = sum(each.steps for each in decodings)
    accounts = [to_json(program, len(dumps(program))) for program in model.programs.values()]
    raw, packed = (sum(each[name] for each in accounts) for name in ("raw_bytes", "encoded_bytes"))
    hosted = [row for program in model.programs.values() for row in host_account(simulate(program))]
    return {
        "blob_bytes": sum(each["blob_bytes"] for each in accounts),
        "footprint_bytes": sum(int(program.constants.size) for program in model.programs.values()),
        "weight_bytes": packed,
        "weight_bits": 8 * packed / raw,
        "latency_ms": percentiles([each.latency_ms for each in waits]),
        "emission_ms": percentiles([each.emission_ms for each in waits]),
        "engine_ms_per_frame": sum(sum(each.busy_ms.values()) for each in waits) / steps,
        "bytes_per_second": sum(each.nbytes for each in waits) / steps * 1000 / STEP_MS,
        "host_ops": sum(len(row.nodes) for row in hosted),
        "call_ms": {part: cost.cold.ms for part, cost in table.items()},
    }


def with_hosted(folder: Path, target: str, decodings: Sequence[Decoding]) -> dict[str, Any]:
    """Return what the same decodings take with the fragile operators on the host."""
    found = costs(transducer(folder, target, FRAGILE), decodings)
    return {name: found[name] for name in ("engine_ms_per_frame", "host_ops")}


def write(folder: Path, pool: Pool, about: dict[str, Any], tokens: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return and write the result of a row.

    Args:
        about: what is known already.
        tokens: what the twin has heard: the blob hears the same.

    Raises:
        NnacError: it does not.
    """
    utterances, models = spoken(pool), [transducer(folder, target) for target in TARGETS]
    wer, decodings = decode(models[0], utterances)
    if [list(each.tokens) for each in decodings] != [list(each) for each in tokens]:
        raise NnacError(f"{folder}: the twin and the blob hear different words")
    for model in models[1:]:
        if decode(model, utterances[:PROBE])[1] != decodings[:PROBE]:
            raise NnacError(f"{folder}: the two targets hear different words")
    found = {**about, "wer": wer}
    for target, model in zip(TARGETS, models, strict=True):
        found[target] = {**costs(model, decodings), "hosted": with_hosted(folder, target, decodings)}
    return save(folder, found)


def save(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write a result and return it."""
    write_file(folder / RESULT, (json.dumps(found, indent=1) + "\n").encode())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default=TARGETS[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--host", action="store_true", help="with the fragile operators on the host")
    arguments = parser.parse_args()
    model = transducer(arguments.folder, arguments.target, FRAGILE if arguments.host else None)
    wer, decodings = decode(model, spoken(Pool.load(arguments.pool)))
    print(json.dumps({"wer": wer, **costs(model, decodings)}, indent=1))


if __name__ == "__main__":
    main()
