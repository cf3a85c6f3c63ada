"""nnac: deployment compiler and bit-exact emulator for fixed-point 8-bit neural network accelerators."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnac.compare import Comparison as Comparison
    from nnac.compiled import CompiledModel as CompiledModel
    from nnac.compiler import compile as compile
    from nnac.compiler import diff as diff
    from nnac.compiler import load as load

__version__ = "0.1.0"

_LAZY = {
    "compile": "nnac.compiler",
    "load": "nnac.compiler",
    "diff": "nnac.compiler",
    "CompiledModel": "nnac.compiled",
    "Comparison": "nnac.compare",
}
__all__ = ["Comparison", "CompiledModel", "__version__", "compile", "diff", "load"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import nnac` and `nnac --help` stay instant."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nnac' has no attribute {name!r}")
