"""Sparse packing: how the bytes of each layer's weights lie in memory, zeros and rare values packed away.

Rules:

1. of the packers that the machine's decoder knows (raw always), a layer takes the one that loads in the fewest cycles
   by the timing model, then the fewest bytes; every block of output channels decodes on its own;
2. a packed block never takes more than raw and one byte;
3. where the array skips folds of zero weights, each convolution carries the folds that it really takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nnac.array import over
from nnac.isa import PACKERS
from nnac.ops import Block
from nnac.targets import Target
from nnac.timing import transfer_cycles

if TYPE_CHECKING:  # it compiles kernels, which raw weights do not need
    from nnac.weights.packers import Codec

SPARSE = 0.2
"""Share of zeros below which a layout that sets zeros apart cannot win."""


@dataclass(frozen=True, slots=True)
class Packing:
    """The weights of one layer as bytes.

    Attributes:
        packer: index into `isa.PACKERS`.
        table: bytes that the blocks share.
        stripes: the bytes of each block.
        sizes: bytes, table included, by packer name, for all that could be chosen; smallest first.
    """

    packer: int
    table: bytes
    stripes: tuple[bytes, ...]
    sizes: tuple[tuple[str, int], ...]


def fit_weights(blocks: Sequence[Block], target: Target) -> Sequence[Codec]:
    """Return the codecs to choose from for a layer's weights, whatever the blocks are; none where they stay raw."""
    stripes = [np.ascontiguousarray(block.weights) for block in blocks]
    total = sum(stripe.size for stripe in stripes)
    known = [index for index, name in enumerate(PACKERS) if index and getattr(target.decoder, name)]
    if not known or not total:
        return ()
    from nnac.weights.packers import Packer, fits

    zeros = (total - sum(map(np.count_nonzero, stripes))) / total
    worth = [p for p in known if PACKERS[p] not in ("bitmap", "runs") or zeros > SPARSE]
    return fits(stripes, [Packer(0), *map(Packer, worth)])


def levels(blocks: Sequence[Block]) -> int:
    """Return how many values a layer's weights take."""
    from nnac.weights.packers import histogram

    return int(np.count_nonzero(sum(histogram(np.ascontiguousarray(block.weights)) for block in blocks)))


def pack_weights(blocks: Sequence[Block], target: Target, codecs: Sequence[Codec]) -> Packing:
    """Return the packing that the target loads fastest, of those of some codecs."""
    stripes = [np.ascontiguousarray(block.weights) for block in blocks]
    if not codecs:
        return Packing(0, b"", tuple(s.tobytes() for s in stripes), (("raw", sum(s.size for s in stripes)),))
    from nnac.weights.packers import packed

    found = packed(stripes, codecs)
    sizes = tuple((PACKERS[c.codec.packer], c.nbytes) for c in found)
    packings = [Packing(int(c.codec.packer), c.codec.table, c.stripes, sizes) for c in found]
    return min(packings, key=lambda p: (load_cycles(p, stripes, target), sum(map(len, p.stripes)) + len(p.table)))


def load_cycles(packing: Packing, stripes: Sequence[np.ndarray], target: Target) -> int:
    """Return the cycles of a layer's loads, one after the other."""
    memory, decoder = target.memory[target.memory_mode.constants], target.decoder
    rate = getattr(decoder, PACKERS[packing.packer]) if packing.packer else decoder.bytes_per_cycle
    cycles = 0
    for stripe, data in zip(stripes, packing.stripes, strict=True):
        moved = transfer_cycles(memory, [(len(part), len(part)) for part in (data, packing.table) if part])
        cycles += max(moved, decoder.issue_cycles + over(stripe.size, rate))
    return cycles
