"""Make the table, the figures beside the papers' own, and the picture, from the results that are there.

python -m examples.transducer.table FOLDER [--picture transducer.svg]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

from examples.transducer.picture import Points, picture
from nnac.program import write_file

RESULT: Final = "result.json"
TINY, FAST = "nna8-tiny", "nna8"
DEEP: Final = "deep"
"""The size whose figures are of nna8; a step of it takes longer on nna8-tiny than the speech in it."""
TITLES: Final = (
    "row",
    "seeds",
    "WER, %",
    "float of these weights",
    "validation",
    "blob, kB",
    "footprint, kB",
    "weight bits",
    "user-perceived latency P50 / P90, ms",
    "engine, ms per frame",
    "on {}",
    "kB per second of speech",
    "host ops",
)
Results = Mapping[str, Sequence[Mapping[str, Any]]]


def load(folder: Path, order: Sequence[str]) -> Results:
    """Return finished results by row, in order, by seed."""
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in order}
    for path in sorted(folder.glob(f"*/{RESULT}")):
        result = json.loads(path.read_text("utf-8"))
        found.setdefault(result["row"], []).append(result)
    return {name: sorted(results, key=lambda r: r["seed"]) for name, results in found.items() if results}


def average(results: Sequence[Mapping[str, Any]], *path: str) -> float:
    """Return the mean over the seeds of an entry of the results."""
    values: list[Any] = list(results)
    for name in path:
        values = [value[name] for value in values]
    return mean(values)


def spread(results: Sequence[Mapping[str, Any]], name: str = "wer") -> str:
    """Return mean and standard deviation over the seeds, in per cent."""
    values = [100 * result[name] for result in results]
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def line(results: Sequence[Mapping[str, Any]], target: str, other: str) -> str:
    """Return a row of the table; a float network is in no blob."""
    first = results[0]
    seeds = " ".join(str(result["seed"]) for result in results)
    if target not in first:
        known = spread(results), spread(results), spread(results, "validation_wer")
        return _cells(first["title"], seeds, *known, *["-"] * (len(TITLES) - 2 - len(known)))

    def kilo(name: str) -> str:
        return f"{average(results, target, name) / 1e3:,.1f}"

    return _cells(
        first["title"],
        seeds,
        spread(results),
        spread(results, "float_wer"),
        spread(results, "validation_wer"),
        kilo("blob_bytes"),
        kilo("footprint_bytes"),
        f"{average(results, target, 'weight_bits'):.2f}",
        " / ".join(f"{average(results, target, 'latency_ms', p):.2f}" for p in ("50", "90")),
        *(f"{average(results, t, 'engine_ms_per_frame'):.{2 if t == TINY else 3}f}" for t in (target, other)),
        kilo("bytes_per_second"),
        str(first[target]["host_ops"]),
    )


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(results: Results, target: str, other: str) -> str:
    """Return the table as Markdown; figures are of `target` where no machine is named."""
    titles = (title.format(other) for title in TITLES)
    rows = (line(each, target, other) for each in results.values())
    return "\n".join([_cells(*titles), f"|{' --- |' * len(TITLES)}", *rows])


def of_size(results: Results, deep: bool) -> Results:
    """Return the rows whose networks are deep, or the others."""
    return {name: each for name, each in results.items() if (each[0]["size"] == DEEP) == deep}


# -- figures beside the papers' ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """By how much a row lies below another one.

    Attributes:
        paper: what the paper says, of its own data and machine.
        path: of the entry in a result; `other_path`: in the other row's, if not the same.
    """

    title: str
    paper: str
    row: str
    other: str
    path: tuple[str, ...]
    other_path: tuple[str, ...] = ()

    def seeds(self, results: Results) -> set[int]:
        """Return the seeds that both rows have."""
        one, two = ({result["seed"] for result in results.get(name, ())} for name in (self.row, self.other))
        return one & two

    def found(self, results: Results) -> str:
        """Return the share over the seeds that both rows have."""
        seeds = self.seeds(results)
        if not seeds:
            return "not yet"
        one, two = ([r for r in results[name] if r["seed"] in seeds] for name in (self.row, self.other))
        below = average(two, *(self.other_path or self.path))
        return f"{1 - average(one, *self.path) / below:.1%}" if below > 0 else "there is none"


WER, FOOTPRINT, BLOB, LATENCY = ("wer",), (TINY, "footprint_bytes"), (TINY, "blob_bytes"), (TINY, "latency_ms", "90")
SIZES: Final = {"": "", "small, ": "small-", "micro, ": "micro-", "4 x 512, ": "deep-"}
"""Beginnings of the titles and names of rows."""
FIGURES: Final = (
    Figure("GQ 5-bit: footprint below 8-bit QAT", "30.73 %", "gq5", "qat8", FOOTPRINT),
    Figure("GQ 5-bit: blob below 8-bit QAT", "30.73 %", "gq5", "qat8", BLOB),
    Figure("GQ 5-bit: P90 latency below 8-bit QAT", "31.30 or 31.75 %", "gq5", "qat8", LATENCY),
    Figure("GQ 5-bit: WER below 8-bit QAT", "about 0", "gq5", "qat8", WER),
    Figure("GQ mixed: footprint below 8-bit QAT", "further", "gqmix", "qat8", FOOTPRINT),
    Figure("GQ mixed: P90 latency below 8-bit QAT", "further", "gqmix", "qat8", LATENCY),
    Figure("S8BQAT, larger: WER below 8-bit QAT", "4 to 16 %", "large-s8bqat5", "qat8", WER),
    Figure("S8BQAT, larger: P90 latency below 8-bit QAT", "5 %", "large-s8bqat5", "qat8", LATENCY),
    Figure("GQ, larger: WER below 8-bit QAT", "-", "large-gq5", "qat8", WER),
    Figure("GQ, larger: P90 latency below 8-bit QAT", "-", "large-gq5", "qat8", LATENCY),
    *(
        Figure(
            f"emulated: engine latency below the same with fragile operators on the host, {target}",
            "5 to 7 %",
            "emu8",
            "emu8",
            (target, "engine_ms_per_frame"),
            (target, "hosted", "engine_ms_per_frame"),
        )
        for target in (TINY, FAST)
    ),
    *(
        Figure(f"{size}emulated: WER below 8-bit {other}", "up to 10 %", f"{prefix}emu8", f"{prefix}{row}", WER)
        for size, prefix in SIZES.items()
        for other, row in (("PTQ", "ptq8"), ("QAT", "qat8"))
    ),
    Figure("4 x 512, GQ 5-bit: footprint below 8-bit QAT", "30.73 %", "deep-gq5", "deep-qat8", (FAST, *FOOTPRINT[1:])),
    Figure(
        "4 x 512, GQ 5-bit: P90 latency below 8-bit QAT, nna8",
        "31.30 or 31.75 %",
        "deep-gq5",
        "deep-qat8",
        (FAST, *LATENCY[1:]),
    ),
    Figure("4 x 512, GQ 5-bit: WER below 8-bit QAT", "about 0", "deep-gq5", "deep-qat8", WER),
    Figure(
        "4 x 512, emulated: engine latency below the same with fragile operators on the host, nna8",
        "5 to 7 %",
        "deep-emu8",
        "deep-emu8",
        (FAST, "engine_ms_per_frame"),
        (FAST, "hosted", "engine_ms_per_frame"),
    ),
    Figure("small, GQ 3-bit, emulated: WER below not emulated", "up to 10 %", "small-gq3-emu", "small-gq3", WER),
    *(
        Figure(f"CSP {percent} %: WER below {title}", "lower", f"csp{percent}", f"{other}{percent}", WER)
        for percent in (50, 75, 90)
        for title, other in (("gradual magnitude", "gradual"), ("L1", "l1-"))
    ),
)


def figures(results: Results) -> Iterator[str]:
    """Yield the relative figures beside the papers' own."""
    yield _cells("figure", "paper", "here", "seeds")
    yield "| --- | --- | --- | --- |"
    for each in FIGURES:
        yield _cells(each.title, each.paper, each.found(results), str(len(each.seeds(results))))


GAPS: Final = {
    **{f"{size}8-bit": [f"{prefix}{row}" for row in ("ptq8", "qat8", "emu8")] for size, prefix in SIZES.items()},
    "small, GQ 3-bit": ["", "small-gq3", "small-gq3-emu"],
}


def gaps(results: Results) -> Iterator[str]:
    """Yield how much more the device errs than its weights do in float, in points of the word error rate."""
    yield _cells("device less float of the same weights, points", "PTQ", "QAT", "emulated", "seeds")
    yield f"|{' --- |' * 5}"
    for title, rows in GAPS.items():
        seeds = set.intersection(*({r["seed"] for r in results.get(row, ())} for row in rows if row))
        if seeds:
            chosen = [[r for r in results.get(row, ()) if r["seed"] in seeds] for row in rows]
            found = (f"{100 * (average(c, 'wer') - average(c, 'float_wer')):.2f}" if c else "-" for c in chosen)
            yield _cells(title, *found, str(len(seeds)))


# -- picture -------------------------------------------------------------------------------------------------------


def points(results: Results, path: tuple[str, ...], factor: float = 1.0) -> Points:
    """Return where the rows that are blobs stand in a picture."""
    blobs = {name: each for name, each in results.items() if TINY in each[0]}
    return {name: (factor * average(each, *path), [100 * r["wer"] for r in each]) for name, each in blobs.items()}


def main() -> None:
    from examples.transducer.rows import ROWS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    every = load(arguments.folder, list(ROWS))
    results, deep = (of_size(every, deep) for deep in (False, True))
    tables = table(results, TINY, FAST), "", "The deep network; figures are of nna8:", "", table(deep, FAST, TINY)
    print(*tables, "", *figures(every), "", *gaps(every), sep="\n")
    if arguments.picture:
        panels = {
            "footprint, kB": points(results, FOOTPRINT, 1e-3),
            "user-perceived latency P90 on nna8-tiny, ms": points(results, LATENCY),
        }
        write_file(arguments.picture, picture(panels).encode())


if __name__ == "__main__":
    main()
