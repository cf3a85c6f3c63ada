"""The command line: the commands. Results go to stdout; progress, notes and errors to stderr.

Exit codes: 0 done; 1 an error or a limit that is not kept; 2 wrong usage; 130 interrupted. Everything heavy is imported
inside the commands, so that `nnac --help` is instant.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnac import __version__
from nnac.cli import arguments
from nnac.cli.arguments import load_program, samples_of, warn_random
from nnac.cli.demo import demo
from nnac.cli.reading import inspect, pipeline, simulate
from nnac.errors import ModelError, NnacError, raise_all
from nnac.terminal import (
    Advance,
    Commands,
    Shape,
    amount,
    announce_kernels,
    fail,
    named_operators,
    named_place,
    named_tensors,
    note,
    progress_bar,
    show,
    sizes,
    variations,
    writable,
)

if TYPE_CHECKING:
    from nnac.session import Session
    from nnac.types import Array

SHOWN_LAYERS = 15
SHOWN_HOST = 10


def main() -> None:
    """Run the command line; the entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="nnac")
    except KeyboardInterrupt as error:
        fail(error)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nnac", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile neural networks for fixed-point 8-bit accelerators, run them bit-exactly, and say how long they take."""


# -- compile -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option("-o", "--output", metavar="NNA", help="Where to write the program; default: the model's name, here.")
@arguments.target
@click.option(
    "--calibrate",
    metavar="NPZ|FOLDER|random",
    help="Samples: one array per input, first axis = samples; `random` for timing studies only.",
)
@arguments.method
@arguments.opens_model
@arguments.names_states
@arguments.weights
@click.option(
    "--activations",
    type=named_tensors,
    default="int8",
    show_default=True,
    metavar="int8|int16|auto|NAMES|@FILE",
    help="Width of the tensors: int16 for all, where int8 keeps too little, or for those in a comma list or file.",
)
@click.option(
    "--host",
    type=named_operators,
    default="allow",
    show_default=True,
    metavar="allow|forbid|NAMES",
    help="What the NNA cannot run: on the processor beside it, in float; or an error. Names or types: those, too.",
)
@click.option("--encodings", metavar="JSON", help="Quantizers of a float model, as AIMET exports them.")
@click.option("--check", is_flag=True, help="Compare every tensor between all stages and the emulator, bit for bit.")
@click.option("--quick", is_flag=True, help="Take the first plan that fits, not the fastest; the outputs are the same.")
@click.option("--max-sram", type=amount, metavar="N", help="Budget: bytes of scratchpad (512K, 1M).")
@click.option("--max-flash", type=amount, metavar="N", help="Budget: bytes of constants.")
@click.option("--max-cycles", type=amount, metavar="N", help="Budget: cycles of one inference.")
def compile(
    model: str,
    output: str | None,
    target: str,
    calibrate: str | None,
    method: str,
    opening: dict[str, Any],
    weights: str | None,
    activations: str | tuple[str, ...],
    host: str | tuple[str, ...],
    encodings: str | None,
    check: bool,
    quick: bool,
    max_sram: int | None,
    max_flash: int | None,
    max_cycles: int | None,
) -> None:
    """Compile an ONNX MODEL into a program (.nna) for a machine."""
    path = writable(output or f"{Path(model).stem}.nna", model)
    from nnac import compiler
    from nnac.program import dumps, write_file
    from nnac.report import screen
    from nnac.report.host import hosted

    announce_kernels("conv" if check else "codec")
    budgets = compiler.Budgets(max_sram, max_flash, max_cycles)
    with progress_bar() as progress:
        compiled = compiler.compile(
            model,
            target,
            calibrate,
            method=method,
            **opening,
            weights=weights,
            activations=activations,
            host=host,
            encodings=encodings,
            check=check,
            budgets=budgets,
            progress=progress,
            quick=quick,
        )
    blob = dumps(compiled.program)
    write_file(path, blob)
    timeline = compiled.simulate()
    more = ("", hosted(timeline, SHOWN_HOST)) if compiled.program.segments else ()
    show(screen(timeline, len(blob), str(path)), *more)


# -- run and compare -----------------------------------------------------------------------------------------------


@cli.command()
@click.argument("program")
@arguments.source
@click.option("-o", "--output", metavar="NPZ", help="Where to write the outputs.")
@click.option("--raw", is_flag=True, help="Outputs as integers, instead of reals.")
@click.option("--load-state", "state_from", metavar="NPZ", help="Start from states that --save-state wrote, not zeros.")
@click.option("--save-state", "state_to", metavar="NPZ", help="Where to write the states behind the last step.")
@arguments.threads
def run(
    program: str,
    source: str,
    output: str | None,
    raw: bool,
    state_from: str | None,
    state_to: str | None,
    threads: int,
) -> None:
    """Run a PROGRAM (.nna) on inputs, bit-exactly.

    The states of a program live on from sample to sample: the first axis of the inputs counts the steps.
    """
    read = (program, source, *((state_from,) if state_from else ()))
    path, state_path = (writable(name, *read) if name else None for name in (output, state_to))
    from nnac.border import free_inputs
    from nnac.program import write_file
    from nnac.report import arrays
    from nnac.session import Session, State

    session = Session(load_program(program), threads)
    if (state_from or state_to) and not session.program.states:
        raise ModelError("--load-state and --save-state are for programs with states; this one has none")
    samples, single = samples_of(source, free_inputs(session.program))
    if state_from:
        session.load_state(State.load(state_from))
    announce_kernels("conv")
    with progress_bar() as progress:
        found = _run(session, samples, single, raw, progress)
    if path is not None:
        write_file(path, arguments.npz(found))
    if state_path is not None:
        session.state().save(state_path)
    show(arrays(found))


def _run(
    session: Session, samples: Iterable[Mapping[str, Array]], single: bool, raw: bool, progress: Advance | None
) -> dict[str, Array]:
    """Return the outputs, stacked unless there is a single sample without a sample axis.

    Every sequence but the first one starts from zeros.
    """
    import numpy as np

    from nnac.calibration import count
    from nnac.types import First

    warn_random(session.program)
    total, results = count(samples), list[dict[str, Any]]()
    for sample in samples:
        if results and isinstance(sample, First):
            session.reset()
        results.append(session.step(sample, raw))
        if progress is not None:
            progress("running", len(results), total)
    if not results:
        raise ModelError("the input has no samples")
    return results[0] if single else {name: np.stack([each[name] for each in results]) for name in results[0]}


@cli.command()
@click.argument("model")
@click.argument("program")
@arguments.source
@arguments.opens_model
@click.option("--all", "everything", is_flag=True, help=f"All layers, not only the {SHOWN_LAYERS} worst.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Exit code 1 if an output is below.")
@arguments.threads
def diff(
    model: str,
    program: str,
    source: str,
    opening: dict[str, Any],
    everything: bool,
    min_sqnr: float | None,
    threads: int,
) -> None:
    """Compare a PROGRAM (.nna) with its float MODEL.

    Per layer: signal-to-quantization-noise ratio alone and with all errors before it, largest difference in steps of
    the output, and values outside the range.
    """
    blob = load_program(program)
    from nnac import compiler
    from nnac.border import free_inputs
    from nnac.report import comparison

    samples, _ = samples_of(source, free_inputs(blob))
    announce_kernels("conv")
    warn_random(blob)
    with progress_bar() as progress:
        result = compiler.diff(model, blob, samples, **opening, progress=progress, threads=threads)
    show(comparison(result, None if everything else SHOWN_LAYERS))
    far = [
        f"output {name!r}: {sqnr:.1f} dB"
        for name, sqnr in result.outputs().items()
        if min_sqnr is not None and not sqnr >= min_sqnr
    ]
    raise_all(NnacError, f"below --min-sqnr {min_sqnr}:", far)


@cli.command()
@click.argument("model")
@arguments.source
@arguments.target
@click.option(
    "--against",
    default="onnxruntime",
    show_default=True,
    metavar="ENGINE",
    help="The other engine: onnxruntime (as written, unoptimized), onnxruntime-integer (its integer operators), or "
    "onnxruntime-optimized.",
)
@arguments.shape
@click.option("--all", "everything", is_flag=True, help="All tensors, and the elements that differ.")
def verify(
    model: str,
    source: str,
    target: str,
    against: str,
    shapes: tuple[tuple[str, Shape], ...],
    everything: bool,
) -> None:
    """Compare a quantized ONNX MODEL on a machine with another engine, integer by integer.

    Each operator starts from the other engine's integers. What differs is a rounding tie, another rule of rounding, or
    a fault; exit code 1 on faults.
    """
    from nnac import verify as against_others
    from nnac.report.verification import table

    announce_kernels("conv")
    found = against_others.verify(model, source, target, against=against, shapes=dict(shapes) or None)
    show(table(found, everything))
    faults = [f"tensor {row.tensor!r} ({row.op}): {row.faults:,} elements" for row in found.rows if row.faults]
    raise_all(NnacError, f"faults against {against}:", faults)


# -- many machines -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option(
    "--vary",
    "variants",
    multiple=True,
    required=True,
    metavar="NAME=V,V",
    help="Values of a figure of the machine (mac.rows=16,32,64); repeat to combine figures.",
)
@arguments.target
@click.option(
    "--calibrate",
    default="random",
    show_default=True,
    metavar="NPZ|FOLDER|random",
    help="Samples, as for `nnac compile`; `random` is enough for time and memory.",
)
@arguments.method
@arguments.opens_model
@arguments.names_states
@click.option("--csv", "csv_path", metavar="FILE", help="Write the table as CSV (- for stdout, then nothing else).")
def sweep(
    model: str,
    variants: tuple[str, ...],
    target: str,
    calibrate: str,
    method: str,
    opening: dict[str, Any],
    csv_path: str | None,
) -> None:
    """Compile an ONNX MODEL for many machines that differ in some figures, and compare them."""
    path = writable(csv_path, model) if csv_path not in (None, "-") else None
    vary = variations(variants)
    from nnac.program import write_file
    from nnac.report import points
    from nnac.sweep import sweep as run_sweep
    from nnac.sweep import to_csv

    announce_kernels("codec")
    with progress_bar() as progress:
        found = run_sweep(model, target, vary, calibrate, method=method, **opening, progress=progress)
    if path is not None:
        write_file(path, to_csv(found).encode())
    if csv_path == "-":
        click.echo(to_csv(found), nl=False)
    else:
        show(points(found))


@cli.command()
@click.argument("model")
@click.option(
    "--along", "place", type=named_place, required=True, metavar="NAME=k,1,192", help="The input's shape, k its frames."
)
@click.option("--sizes", "counts", type=sizes, default="1,2,4,8", show_default=True, help="Frames per call.")
@arguments.period
@arguments.target
@arguments.weights
@arguments.opens_model
@arguments.names_states
def chunks(
    model: str,
    place: tuple[str, tuple[int | None, ...]],
    counts: tuple[int, ...],
    period_ms: float,
    target: str,
    weights: str | None,
    opening: dict[str, Any],
) -> None:
    """Compile an ONNX MODEL for several frames per call: waiting against weight traffic."""
    from nnac.chunks import chunks as compile_chunks
    from nnac.report.streaming import chunk_table

    announce_kernels("codec")
    show(
        chunk_table(compile_chunks(model, dict([place]), counts, period_ms, target=target, weights=weights, **opening))
    )


# -- what there is -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("name", required=False)
def targets(name: str | None) -> None:
    """List the machines, or the figures of one.

    NAME is one of the list, or a .toml file.
    """
    from nnac import report
    from nnac.targets import load_target, target_names

    if name is None:
        show(report.targets(map(load_target, target_names())))
    else:
        show(report.figures(load_target(name)))


@cli.command()
def warmup() -> None:
    """Compile all kernels for this machine ahead of their first use.

    They are kept in the user's cache folder until nnac or numba changes.
    """
    from nnac import kernels

    with progress_bar() as progress:
        for done, name in enumerate(kernels.compile_all()):
            if progress is None:
                note(f"kernels: {name}")
            else:
                progress("compiling kernels", done, len(kernels.modules()) + 1)
    note(f"kernels are ready in {kernels.cache_folder()}")


@cli.command()
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
def ops(markdown: bool) -> None:
    """List the supported ONNX operators."""
    from nnac import report
    from nnac.frontend import supported_operators

    if markdown:
        click.echo(report.operators_markdown(supported_operators()))
    else:
        show(report.operators(supported_operators()))


for command in (simulate, inspect, pipeline, demo):
    cli.add_command(command)


if __name__ == "__main__":
    main()
