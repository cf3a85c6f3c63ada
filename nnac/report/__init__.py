"""Reports: programs, timelines, sweeps and comparisons as text tables, and a timeline as JSON.

Pure functions. Figures come from their readers (`nnac.timing`, `nnac.liveness`, `nnac.program`, `nnac.compare`); here
they are only arranged. Names come from models that nobody vouched for: they are shown through `printable` and never
interpreted.
"""

from nnac.report.comparison import comparison
from nnac.report.document import SCHEMA, contract, to_json
from nnac.report.latency import (
    Changes,
    all_layers,
    bound,
    busy,
    by_memory,
    changed,
    energy,
    layer_traffic,
    layers,
    screen,
    traffic,
)
from nnac.report.machines import figures, operators, operators_markdown, points, targets
from nnac.report.parts import calibration, columns, facts, machine, printable, short, text
from nnac.report.program import arrays, header, interface, memory_map, scratchpad, states, tensors, weights

__all__ = [
    "SCHEMA",
    "Changes",
    "all_layers",
    "arrays",
    "bound",
    "busy",
    "by_memory",
    "calibration",
    "changed",
    "columns",
    "comparison",
    "contract",
    "energy",
    "facts",
    "figures",
    "header",
    "interface",
    "layer_traffic",
    "layers",
    "machine",
    "memory_map",
    "operators",
    "operators_markdown",
    "points",
    "printable",
    "scratchpad",
    "screen",
    "short",
    "states",
    "targets",
    "tensors",
    "text",
    "to_json",
    "traffic",
    "weights",
]
