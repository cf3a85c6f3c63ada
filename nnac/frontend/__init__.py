"""The door: ONNX in, one typed float graph out. Behind it there is no ONNX."""

from nnac.frontend.encodings import with_encodings
from nnac.frontend.importer import TABLE, import_graph, input_dtypes, supported_operators
from nnac.frontend.limits import LIMITS, Limits
from nnac.frontend.prepare import as_given, prepare
from nnac.frontend.qlinear import integer_form
from nnac.frontend.rows_quant import evaluate
from nnac.frontend.states import find_states
from nnac.frontend.unpack import unpack_states

__all__ = [
    "LIMITS",
    "TABLE",
    "Limits",
    "as_given",
    "evaluate",
    "find_states",
    "import_graph",
    "input_dtypes",
    "integer_form",
    "prepare",
    "supported_operators",
    "unpack_states",
    "with_encodings",
]
