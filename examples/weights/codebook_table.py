"""How well tables of few int8 levels represent weights: every generator at every width, on one page.

Weight SQNR in dB of 1 Mi Gaussian and Laplace weights with one scale and one table; error feedback against nearest
levels on correlated inputs; and the anchors: exact levels of a 1024 x 4096 Laplace matrix, the Lloyd-Max quantizer of
N(0, 1). Run it as `python examples/weights/codebook_table.py`.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from nnac.weights.codebooks import encode
from nnac.weights.feedback import output_errors
from nnac.weights.generators import GENERATORS
from nnac.weights.histogram import lloyd_max_levels

Floats = NDArray[np.float64]

WIDTHS = (8, 6, 5, 4, 3, 2, 1)
ANCHORS = {4: 7.541, 16: 18.104, 64: 29.746, 256: 41.746}
GAUSSIAN_MSE = {1: 0.36338, 2: 0.11748, 3: 0.03455, 4: 0.00950, 5: 0.00250}


def levels_error(x: Floats, levels: Floats) -> Floats:
    """Return each value's distance to its nearest level."""
    return np.asarray(x - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)])


def anchors() -> Table:
    """Return SQNR and time of the Laplace matrix, with float levels and with int8 levels."""
    matrix = (np.random.default_rng(0).laplace(size=(1024, 4096)) * 0.02).astype(np.float32)
    x = matrix.ravel().astype(np.float64)
    table = Table(
        "k",
        "float dB",
        "anchor",
        "CPU s",
        "int8 dB",
        "CPU s",
        "int8, a scale per channel",
        title="1024 x 4096 Laplace matrix, lloyd_max",
    )
    for k, anchor in ANCHORS.items():
        start = time.process_time()
        levels = lloyd_max_levels(matrix, k)
        exact = time.process_time() - start
        error = levels_error(x, levels)
        bits = k.bit_length() - 1
        start = time.process_time()
        encoded = encode(matrix, bits, per_channel=False)
        joint = time.process_time() - start
        channels = encode(matrix, bits).sqnr_db
        table.add_row(
            str(k),
            f"{10 * np.log10((x @ x) / (error @ error)):.4f}",
            f"{anchor:.3f}",
            f"{exact:.2f}",
            f"{encoded.sqnr_db:.3f}",
            f"{joint:.2f}",
            f"{channels:.3f}",
        )
    return table


def gaussian() -> Table:
    """Return the Lloyd-Max quantizer of N(0, 1)."""
    x = np.linspace(-7, 7, 200_001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    table = Table("bits", "MSE", "known", "positive levels", title="Lloyd-Max of N(0, 1)")
    for bits, known in GAUSSIAN_MSE.items():
        levels = lloyd_max_levels(x, 2**bits, density)
        first = " ".join(f"{level:.4f}" for level in levels[2 ** (bits - 1) :][:8])
        table.add_row(str(bits), f"{density @ levels_error(x, levels) ** 2:.5f}", f"{known:.5f}", first)
    return table


def generators(name: str, weights: Floats) -> Table:
    """Return SQNR by generator and width."""
    table = Table("generator", *(f"{bits} bits" for bits in WIDTHS), title=f"1 Mi {name} weights, SQNR dB")
    for generator in GENERATORS.values():
        cells = [
            f"{encode(weights, bits, generator.name, per_channel=False).sqnr_db:.2f}" if bits in generator.bits else ""
            for bits in WIDTHS
        ]
        table.add_row(generator.name, *cells)
    return table


def feedback() -> Table:
    """Return the output error that error feedback saves, on inputs that share factors."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(256, 512)) * 0.05
    x = rng.normal(size=(512, 128)) @ rng.normal(size=(128, 2048)) + 0.3 * rng.normal(size=(512, 2048))
    hessian, table = x @ x.T, Table("generator", *(f"{b} bits" for b in WIDTHS), title="gptq over nearest, output dB")
    for name in ("lloyd_max", "uniform"):
        cells = []
        for bits in WIDTHS:
            pair = encode(weights, bits, name), encode(weights, bits, name, "gptq", hessian=hessian)
            near, fed = (output_errors(weights - e.dequantized(), hessian).sum() for e in pair)
            cells.append(f"+{10 * np.log10(near / fed):.2f}")
        table.add_row(name, *cells)
    return table


def main() -> None:
    """Print all tables."""
    rng, console = np.random.default_rng(0), Console()
    samples = {"Gaussian": rng.normal(size=(1024, 1024)), "Laplace": rng.laplace(size=(1024, 1024))}
    for table in (anchors(), gaussian(), *(generators(n, w) for n, w in samples.items()), feedback()):
        console.print(table)


if __name__ == "__main__":
    main()
