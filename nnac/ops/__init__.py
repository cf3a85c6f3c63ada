"""Operators, one class each; `REGISTRY` is what the registry-driven tests and `nnac ops` walk over."""

from nnac.ops.activation import Activation
from nnac.ops.base import Block, Bound, Op, Sample, Slab, Step, Work
from nnac.ops.cells import Gru, Lstm, Rnn
from nnac.ops.conv import Conv, Dense
from nnac.ops.elementwise import Magnitude, Mul, Sum
from nnac.ops.host import Host
from nnac.ops.matmul import MatMul
from nnac.ops.move import Concat, Move, Pad, Reshape, Slice, Transpose
from nnac.ops.norm import Norm
from nnac.ops.pairs import Div, Extreme, Select
from nnac.ops.pool import AveragePool, MaxPool
from nnac.ops.recurrent import Recurrent
from nnac.ops.softmax import Softmax
from nnac.ops.take import Insert, Take

REGISTRY: tuple[type[Op], ...] = (
    Conv,
    Dense,
    MaxPool,
    AveragePool,
    Sum,
    Mul,
    Magnitude,
    Activation,
    Softmax,
    Reshape,
    Transpose,
    Slice,
    Concat,
    Pad,
    Lstm,
    Gru,
    Rnn,
    Take,
    Insert,
    Host,
    MatMul,
    Norm,
    Div,
    Extreme,
    Select,
)
UNSTRIPED = (Move, Host)
"""Operators that work from home to home on whole tensors."""

__all__ = [
    "REGISTRY",
    "UNSTRIPED",
    "Activation",
    "AveragePool",
    "Block",
    "Bound",
    "Concat",
    "Conv",
    "Dense",
    "Div",
    "Extreme",
    "Gru",
    "Host",
    "Insert",
    "Lstm",
    "Magnitude",
    "MatMul",
    "MaxPool",
    "Move",
    "Mul",
    "Norm",
    "Op",
    "Pad",
    "Recurrent",
    "Reshape",
    "Rnn",
    "Sample",
    "Select",
    "Slab",
    "Slice",
    "Softmax",
    "Step",
    "Sum",
    "Take",
    "Transpose",
    "Work",
]
