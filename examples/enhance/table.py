"""Networks for speech on the emulated machine against float: what they say, and how long they take.

    NNAC_ASSETS=/path/to/assets python -m examples.enhance.table [--activations int8|auto|int16] [--only NAME]

SI-SDR is that of the enhanced sound against float's. DNSMOS is the largest difference of the three scores. No network
is calibrated on what is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.enhance import keywords, streams
from examples.enhance.networks import DENOISERS, DETECTORS
from nnac.compiled import CompiledModel
from nnac.errors import NnacError, one_line
from nnac.program import dumps

NAMES = (*DENOISERS, *DETECTORS, *keywords.FEATURES)


def results(assets: Path, name: str, **options: Any) -> tuple[str, Sequence[CompiledModel], float]:
    """Return a network's figures against float, its blobs, and the seconds of sound per step."""
    if name in DENOISERS:
        run, figures = streams.denoise(assets, name, **options)
        apart = figures.found.apart(figures.truth)
        scores = f"overall {figures.found.overall:.2f} (float {figures.truth.overall:.2f})"
        return f"SI-SDR {figures.si_sdr:.1f} dB, DNSMOS {apart:.3f}, {scores}", run.compiled, run.network.period
    if name in DETECTORS:
        run, same = streams.detect(assets, name, **options)
        return f"{same:.2%} of {len(run.truth)} decisions", run.compiled, run.network.period
    heard = keywords.hear(assets, name, **options)
    text = f"{heard.all_clips:.1%} of the words, {heard.sure_clips:.1%} of {heard.sure} that float is sure of"
    return text, [heard.compiled], keywords.SECOND


def row(figures: str, blobs: Sequence[CompiledModel], period: float) -> Iterator[str]:
    """Yield the cells of a network behind its name."""
    milliseconds = sum(blob.simulate().milliseconds for blob in blobs)
    yield figures
    yield f"{milliseconds:.3f}"
    yield f"{milliseconds / 1000 / period:.4f}"
    yield f"{sum(len(dumps(blob.program)) for blob in blobs):,}"


def main() -> int:
    """Print the table; exit code 1 without assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="nna8", help="machine to compile for (default: nna8)")
    parser.add_argument("--activations", default="auto", help="int8, auto, int16 (default: auto)")
    parser.add_argument("--only", choices=NAMES, help="only this network; default: all")
    given = parser.parse_args()
    assets = Path(os.environ.get("NNAC_ASSETS", ""))
    if not (assets / "models").is_dir():
        print("table: NNAC_ASSETS is not the folder with `models` and `data`", file=sys.stderr)
        return 1
    table = Table("network", "against float", "ms per step", "real-time factor", "blob bytes")
    options = {"target": given.target, "activations": given.activations}
    for name in NAMES if given.only is None else (given.only,):
        try:
            table.add_row(name, *row(*results(assets, name, **options)))
        except NnacError as error:
            table.add_row(name, f"not compiled: {one_line(error)[:160]}", "-", "-", "-")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
