"""Training companions (extra `train`): the accelerator in the forward pass, and compressors of weights."""

from __future__ import annotations

from nnac.train.compressors import (
    S8BQAT,
    Centroids,
    Compression,
    Compressor,
    DoubleRounding,
    FakeQuant,
    Ternary,
    compress,
    distillation_loss,
    lloyd_max,
    mracos,
)
from nnac.train.emulate import Twin, emulate
from nnac.train.export import Exported, export, verify
from nnac.train.gq import GQ
from nnac.train.pruning import CSP, L1, Pruner, random_sensing
from nnac.train.rnnt import transducer_loss
from nnac.train.trainer import History, Schedule, train

__all__ = [
    "CSP",
    "GQ",
    "L1",
    "S8BQAT",
    "Centroids",
    "Compression",
    "Compressor",
    "DoubleRounding",
    "Exported",
    "FakeQuant",
    "History",
    "Pruner",
    "Schedule",
    "Ternary",
    "Twin",
    "compress",
    "distillation_loss",
    "emulate",
    "export",
    "lloyd_max",
    "mracos",
    "random_sensing",
    "train",
    "transducer_loss",
    "verify",
]
