"""The door: ONNX in, one typed float graph out. Behind it there is no ONNX."""

from nnac.frontend.importer import TABLE, import_graph, input_dtypes, supported_operators
from nnac.frontend.limits import LIMITS, Limits
from nnac.frontend.prepare import prepare

__all__ = ["LIMITS", "TABLE", "Limits", "import_graph", "input_dtypes", "prepare", "supported_operators"]
