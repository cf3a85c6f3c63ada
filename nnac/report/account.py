"""Accounts: what every layer's weights cost in the blob, against the entropy, int8 and float32.

Figures come from the program alone: each packed block is decoded by the packer that its load names, and counted once,
however often it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnac import isa
from nnac.isa import PACKERS, Load
from nnac.isa.stream import encode
from nnac.program import Program
from nnac.types import Array
from nnac.weights.packers import entropy_bits, unpack


@dataclass(frozen=True, slots=True)
class WeightRow:
    """The weights of one layer.

    Attributes:
        name, op: of the layer.
        shape: (output channels, kernel height, kernel width, input channels per group).
        raw_bytes: as int8.
        stripe_bytes, table_bytes: of the packed blocks, and of the table that they share.
        levels: distinct int8 values.
        zeros: share of weights that are zero.
        entropy_bits: order-0 entropy per weight.
        packer: the layout in the blob.
        runners_up: (layout, bytes) of those that were not taken.
        sqnr_db: against the float model's weights; None: nothing lost.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    raw_bytes: int
    stripe_bytes: int
    table_bytes: int
    levels: int
    zeros: float
    entropy_bits: float
    packer: str
    runners_up: tuple[tuple[str, int], ...]
    sqnr_db: float | None

    @property
    def encoded_bytes(self) -> int:
        """Bytes in the blob, table included."""
        return self.stripe_bytes + self.table_bytes

    @property
    def bits(self) -> int:
        """Width of an index into the levels."""
        return max(1, (self.levels - 1).bit_length())

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes in the blob, table included."""
        return 8 * self.encoded_bytes / self.raw_bytes


@dataclass(frozen=True, slots=True)
class BlobBytes:
    """Where the bytes of a `.nna` file are; all but `blob` and the last two add up to it.

    Attributes:
        blob: the file.
        weights: packed blocks; `weight_tables`: the tables that they share.
        params: biases, multipliers and shifts.
        functions: tables of non-linear functions.
        operands: constants that are no weights, and padding.
        instructions, metadata: the rest.
        all_int8: the file if weights were int8; `float32`: float32 weights and biases alone.
    """

    blob: int
    weights: int
    weight_tables: int
    params: int
    functions: int
    operands: int
    instructions: int
    metadata: int
    all_int8: int
    float32: int

    def parts(self) -> dict[str, int]:
        """Return the parts that add up to the file."""
        return {
            "weights": self.weights,
            "weight tables": self.weight_tables,
            "bias, multipliers": self.params,
            "function tables": self.functions,
            "other constants": self.operands,
            "instructions": self.instructions,
            "metadata": self.metadata,
        }


def weight_account(program: Program) -> list[WeightRow]:
    """Return one row per layer with weights, in program order."""
    image, used = program.constants, _blocks(program)
    return [_row(program, place, blocks, image) for place, blocks in sorted(used.items())]


def blob_account(program: Program, rows: Sequence[WeightRow], blob_bytes: int) -> BlobBytes:
    """Return where the bytes of the program's file are."""
    weights, tables = sum(row.stripe_bytes for row in rows), sum(row.table_bytes for row in rows)
    sizes = _constant_bytes(program)
    stream, constants = len(encode(program.instructions, program.loops)), int(program.constants.size)
    raw, channels = sum(row.raw_bytes for row in rows), sum(row.shape[0] for row in rows)
    return BlobBytes(
        blob_bytes,
        weights,
        tables,
        sizes["params"],
        sizes["functions"],
        constants - weights - tables - sizes["params"] - sizes["functions"],
        stream,
        blob_bytes - stream - constants,
        blob_bytes - weights - tables + raw,
        4 * (raw + channels),
    )


def to_json(program: Program, blob_bytes: int) -> dict[str, Any]:
    """Return the account as a dict for JSON: `tensors`, one entry per layer with weights, and totals in bytes."""
    rows = weight_account(program)
    blob, raw = blob_account(program, rows, blob_bytes), sum(row.raw_bytes for row in rows)
    parts = {name.replace(", ", "_").replace(" ", "_"): nbytes for name, nbytes in blob.parts().items()}
    encoded = sum(row.encoded_bytes for row in rows)
    return {
        "model": program.name,
        "target": program.target.name,
        "tensors": [_row_json(row) for row in rows],
        "raw_bytes": raw,
        "encoded_bytes": encoded,
        "bits_per_weight": 8 * encoded / raw if raw else None,
        "blob_bytes": blob.blob,
        "blob": parts,
        "blob_bytes_all_int8": blob.all_int8,
        "float32_bytes": blob.float32,
    }


def _row_json(row: WeightRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "op": row.op,
        "shape": list(row.shape),
        "raw_bytes": row.raw_bytes,
        "encoded_bytes": row.encoded_bytes,
        "table_bytes": row.table_bytes,
        "bits": row.bits,
        "levels": row.levels,
        "entropy_bits": row.entropy_bits,
        "bits_per_weight": row.bits_per_weight,
        "packer": row.packer,
        "runners_up": dict(row.runners_up),
        "sparsity": row.zeros,
        "sqnr_db": row.sqnr_db,
    }


# -- blocks --------------------------------------------------------------------------------------------------------

Blocks = dict[int, tuple[Load, isa.Conv]]
"""Loads of packed blocks by their address in the image, with a convolution that uses each."""


def _blocks(program: Program) -> dict[int, Blocks]:
    """Return the blocks of weights by layer."""
    owner = {index: place for place, layer in enumerate(program.layers) for index in layer.indices()}
    found: dict[int, Blocks] = {}
    for index, conv, load in _uses(program):
        found.setdefault(owner[index], {})[load.source] = load, conv
    return found


def _uses(program: Program) -> Iterator[tuple[int, isa.Conv, Load]]:
    """Yield every convolution with the load that brought its weights."""
    present: dict[int, Load] = {}
    for index, i in enumerate(program.instructions):
        if isinstance(i, Load):
            present[i.target] = i
        elif isinstance(i, isa.Conv) and i.weights in present:
            yield index, i, present[i.weights]


def _row(program: Program, place: int, blocks: Blocks, image: Array) -> WeightRow:
    layer, ordered = program.layers[place], sorted(blocks.values(), key=lambda pair: pair[1].channel)
    loads, conv = [load for load, _ in ordered], ordered[0][1]
    weights = np.concatenate([_decoded(load, image) for load in loads])
    tap = (conv.kernel_h, conv.kernel_w, conv.depth)
    tables = {load.table: load.table_bytes for load in loads if load.table_bytes}
    packer, encoding = PACKERS[loads[0].packer], layer.encoding
    return WeightRow(
        layer.name,
        layer.op,
        (weights.size // max(1, isa.volume(tap)), *tap),
        weights.size,
        sum(load.source_bytes for load in loads),
        sum(tables.values()),
        len(np.unique(weights)),
        float((weights == 0).mean()),
        entropy_bits(weights),
        packer,
        tuple(pair for pair in encoding.sizes if pair[0] != packer) if encoding else (),
        encoding.sqnr_db if encoding else None,
    )


def _decoded(load: Load, image: Array) -> Array:
    """Return the int8 weights of one block."""
    out = np.empty(load.target_bytes, np.int8)
    table = image[load.table : load.table + load.table_bytes].tobytes()
    unpack(load.packer, table, np.ascontiguousarray(image[load.source : load.source + load.source_bytes]), out)
    return out


def _constant_bytes(program: Program) -> dict[str, int]:
    """Return the bytes of params of convolutions and norms, and of the tables of functions."""
    present: dict[int, Load] = {}
    found: dict[str, dict[int, int]] = {"params": {}, "functions": {}}
    for i in program.instructions:
        match i:
            case Load():
                present[i.target] = i
            case isa.Conv() | isa.Norm() if i.params in present:
                found["params"][present[i.params].source] = present[i.params].source_bytes
            case isa.Lookup() | isa.Softmax() if i.table in present:
                found["functions"][present[i.table].source] = present[i.table].source_bytes
            case isa.Lstm() | isa.Gru() if i.tables in present:
                found["functions"][present[i.tables].source] = present[i.tables].source_bytes
            case _:
                pass
    return {what: sum(sizes.values()) for what, sizes in found.items()}
