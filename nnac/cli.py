"""The command line: the commands. Results go to stdout; progress, notes and errors to stderr.

Exit codes: 0 done; 1 an error or a limit that is not kept; 2 wrong usage; 130 interrupted. Everything heavy is imported
inside the commands, so that `nnac --help` is instant.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnac import __version__
from nnac.errors import ModelError, NnacError, ProgramError, raise_all
from nnac.terminal import (
    Advance,
    Commands,
    Shape,
    amount,
    announce_kernels,
    changes,
    fail,
    named_number,
    named_shape,
    named_tensors,
    note,
    progress_bar,
    show,
    variations,
    writable,
)

if TYPE_CHECKING:
    from nnac.compiled import CompiledModel
    from nnac.program import Program
    from nnac.timing import Timeline
    from nnac.types import Array

SHOWN_LAYERS = 15
SHOWN_HOST = 10
DIGITS = ("digits.onnx", "calibration.npz", "features.py", "clips")


def main() -> None:
    """Run the command line; the entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="nnac")
    except KeyboardInterrupt as error:
        fail(error)


# -- parameters ----------------------------------------------------------------------------------------------------


_target = click.option(
    "--target",
    default="nna8",
    show_default=True,
    metavar="NAME|TOML",
    help="Machine: a name of `nnac targets`, or a .toml file.",
)
_method = click.option(
    "--method",
    default="minmax",
    show_default=True,
    metavar="minmax|percentile|mse",
    help="How ranges come from the samples.",
)
_shape = click.option(
    "--shape",
    "shapes",
    type=named_shape,
    multiple=True,
    metavar="NAME=1,3,224,224",
    help="Full shape of an input with open dimensions; may be repeated.",
)
_freeze = click.option(
    "--freeze",
    type=named_number,
    multiple=True,
    metavar="NAME=16000",
    help="Make an input a constant of this value; may be repeated.",
)
_input = click.option(
    "--input",
    "source",
    required=True,
    metavar="NPZ",
    help="Input arrays by name, each of the input's shape or with a leading axis of samples.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nnac", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile neural networks for fixed-point 8-bit accelerators, run them bit-exactly, and say how long they take."""


# -- compile -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option("-o", "--output", metavar="NNA", help="Where to write the program; default: the model's name, here.")
@_target
@click.option(
    "--calibrate",
    metavar="NPZ|FOLDER|random",
    help="Samples: one array per input, first axis = samples; `random` for timing studies only.",
)
@_method
@_shape
@_freeze
@click.option(
    "--weights",
    metavar="SPEC",
    help="Bits below eight: 5, 4:lloyd_max:gptq, auto:BYTES, auto:30dB, or a .toml file with rules per layer.",
)
@click.option(
    "--activations",
    type=named_tensors,
    default="int8",
    show_default=True,
    metavar="int8|int16|NAMES|@FILE",
    help="Width of the tensors: int16 for all, or for those named: a comma list, or a file with a name per line.",
)
@click.option(
    "--host",
    default="allow",
    show_default=True,
    metavar="allow|forbid",
    help="What the NNA cannot run: on the processor beside it, in float; or an error.",
)
@click.option("--check", is_flag=True, help="Compare every tensor between all stages and the emulator, bit for bit.")
@click.option("--max-sram", type=amount, metavar="N", help="Budget: bytes of scratchpad (512K, 1M).")
@click.option("--max-flash", type=amount, metavar="N", help="Budget: bytes of constants.")
@click.option("--max-cycles", type=amount, metavar="N", help="Budget: cycles of one inference.")
def compile(
    model: str,
    output: str | None,
    target: str,
    calibrate: str | None,
    method: str,
    shapes: tuple[tuple[str, Shape], ...],
    freeze: tuple[tuple[str, float], ...],
    weights: str | None,
    activations: str | tuple[str, ...],
    host: str,
    check: bool,
    max_sram: int | None,
    max_flash: int | None,
    max_cycles: int | None,
) -> None:
    """Compile an ONNX MODEL into a program (.nna) for a machine."""
    if calibrate is None:
        raise ModelError(
            "no calibration: pass --calibrate samples.npz (one array per input, first axis = samples) or "
            "a folder of such files; or --calibrate random, for shape and timing studies only"
        )
    path = writable(output or f"{Path(model).stem}.nna", model)
    from nnac import compiler
    from nnac.program import dumps, write_file

    announce_kernels("conv" if check else "codec")
    budgets = compiler.Budgets(max_sram, max_flash, max_cycles)
    with progress_bar() as progress:
        compiled = compiler.compile(
            model,
            target,
            calibrate,
            method=method,
            shapes=dict(shapes),
            freeze=dict(freeze),
            weights=weights,
            activations=activations,
            host=host,
            check=check,
            budgets=budgets,
            progress=progress,
        )
    blob = dumps(compiled.program)
    write_file(path, blob)
    _screen(compiled.simulate(), len(blob), path)


def _screen(timeline: Timeline, blob_bytes: int, path: Path | None = None) -> None:
    from nnac.report import hosted, screen

    more = ("", hosted(timeline, SHOWN_HOST)) if timeline.program.segments else ()
    show(screen(timeline, blob_bytes, str(path) if path else ""), *more)


# -- run and compare -----------------------------------------------------------------------------------------------


@cli.command()
@click.argument("program")
@_input
@click.option("-o", "--output", metavar="NPZ", help="Where to write the outputs.")
@click.option("--raw", is_flag=True, help="Outputs as integers, instead of reals.")
def run(program: str, source: str, output: str | None, raw: bool) -> None:
    """Run a PROGRAM (.nna) on inputs, bit-exactly."""
    path = writable(output, program, source) if output else None
    from nnac.compiled import CompiledModel
    from nnac.program import write_file
    from nnac.report import arrays

    model = CompiledModel(_load(program))
    samples, single = _samples(source, _inputs(model.program))
    announce_kernels("conv")
    with progress_bar() as progress:
        found = _run(model, samples, single, raw, progress)
    if path is not None:
        write_file(path, _npz(found))
    show(arrays(found))


def _load(path: str) -> Program:
    """Return a validated program, without the imports that only compiling needs."""
    from nnac.validate import load

    announce_kernels("codec")

    return load(path)


def _warn_random(program: Program) -> None:
    if program.calibration == "random":
        note("note: calibrated on random data: values mean nothing, only timing does")


def _inputs(program: Program) -> dict[str, Shape]:
    """Return ONNX names and shapes of the inputs."""
    return {tensor.onnx_name: tensor.onnx_shape for tensor in map(program.tensor, program.inputs)}


def _run(
    model: CompiledModel, samples: Iterable[Mapping[str, Array]], single: bool, raw: bool, progress: Advance | None
) -> dict[str, Array]:
    """Return the outputs, stacked unless there is a single sample without a sample axis."""
    import numpy as np

    from nnac.calibration import count

    _warn_random(model.program)
    total, results = count(samples), []
    for sample in samples:
        results.append(model.run(sample, raw))
        if progress is not None:
            progress("running", len(results), total)
    if not results:
        raise ModelError("the input has no samples")
    return results[0] if single else {name: np.stack([each[name] for each in results]) for name in results[0]}


def _samples(source: str, shapes: Mapping[str, Shape]) -> tuple[Iterable[Mapping[str, Array]], bool]:
    """Return the samples of a source, and whether it is one sample without a sample axis."""
    from nnac.calibration import load_samples

    single = _single(Path(source), shapes)
    return (load_samples(source, shapes), False) if single is None else ([single], True)


def _single(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Array] | None:
    """Return the arrays of a file that has exactly the inputs, each in its shape; None for anything else."""
    import numpy as np

    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            if set(archive.files) != set(shapes) or _large(archive.zip, shapes):
                return None
            found = {name: archive[name] for name in shapes}
    except Exception:  # whatever is wrong with the file, reading it as samples says so
        return None
    return found if all(found[name].shape == shape for name, shape in shapes.items()) else None


def _large(archive: Any, shapes: Mapping[str, Shape]) -> bool:
    """Tell whether a zip file holds more than one sample could need, 8 bytes an element."""
    from math import prod

    need = sum(8 * prod(shape) + (1 << 16) for shape in shapes.values())
    return bool(sum(member.file_size for member in archive.infolist()) > need)


def _npz(found: Mapping[str, Array]) -> bytes:
    """Return the bytes of an .npz file; equal arrays give equal bytes, and any name will do (unlike `numpy.savez`)."""
    import zipfile

    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in found.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


@cli.command()
@click.argument("model")
@click.argument("program")
@_input
@_shape
@_freeze
@click.option("--all", "everything", is_flag=True, help=f"All layers, not only the {SHOWN_LAYERS} worst.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Exit code 1 if an output is below.")
def diff(
    model: str,
    program: str,
    source: str,
    shapes: tuple[tuple[str, Shape], ...],
    freeze: tuple[tuple[str, float], ...],
    everything: bool,
    min_sqnr: float | None,
) -> None:
    """Compare a PROGRAM (.nna) with its float MODEL.

    Per layer: signal-to-quantization-noise ratio alone and with all errors before it, largest difference in steps of
    the output, and values outside the range.
    """
    blob = _load(program)
    from nnac import compiler
    from nnac.report import comparison

    samples, _ = _samples(source, _inputs(blob))
    announce_kernels("conv")
    _warn_random(blob)
    with progress_bar() as progress:
        result = compiler.diff(model, blob, samples, dict(shapes) or None, progress, dict(freeze))
    show(comparison(result, None if everything else SHOWN_LAYERS))
    far = [
        f"output {name!r}: {sqnr:.1f} dB"
        for name, sqnr in result.outputs().items()
        if min_sqnr is not None and not sqnr >= min_sqnr
    ]
    raise_all(NnacError, f"below --min-sqnr {min_sqnr}:", far)


# -- read a program ------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("program")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="What if: another rate or latency of the machine (memory.dram.bytes_per_cycle=2); may be repeated.",
)
@click.option("--warm", is_flag=True, help="Time an inference after the first: weights that stay are not loaded again.")
@click.option("--layers", is_flag=True, help="All layers with their bytes, not only the worst.")
@click.option("--json", "json_path", metavar="FILE", help="Write the report as JSON (- for stdout, then nothing else).")
@click.option("--trace", "trace_path", metavar="FILE", help="Write the timeline in Chrome's trace format (Perfetto).")
@click.option("--explain", is_flag=True, help="Print the contract of the timing model.")
def simulate(
    program: str,
    settings: tuple[str, ...],
    warm: bool,
    layers: bool,
    json_path: str | None,
    trace_path: str | None,
    explain: bool,
) -> None:
    """Time a PROGRAM (.nna) and say what bounds it."""
    paths = {path: writable(path, program) for path in (json_path, trace_path) if path not in (None, "-")}
    from nnac import report, timing, trace
    from nnac.program import dumps

    blob = _load(program)
    machine = timing.what_if(blob, changes(settings))
    timeline, size = timing.simulate(blob, machine, warm), len(dumps(blob))
    changed = report.changed(blob.target, machine)
    _note_what_if(blob, timeline, warm, bool(settings) and not changed)
    if json_path is not None:
        _write_json(paths.get(json_path), report.to_json(timeline, size, changed), indent=1)
    if trace_path is not None:
        _write_json(paths.get(trace_path), trace.to_trace(timeline))
    if "-" in (json_path, trace_path):
        return
    show(report.screen(timeline, size, program, changed), *(("", report.all_layers(timeline)) if layers else ()))
    if layers and blob.segments:
        show("", report.hosted(timeline))
    if explain:
        click.echo(f"\n{report.contract()}")


def _note_what_if(program: Program, timeline: Timeline, warm: bool, unchanged: bool) -> None:
    """Say where a what-if changes nothing."""
    if unchanged:
        note("note: the figures are what the program was compiled for")
    if warm and not timeline.warm:
        note("note: weights do not stay in the weight buffer: every inference loads them, and --warm changes nothing")


def _write_json(path: Path | None, data: Mapping[str, Any], indent: int | None = None) -> None:
    """Write JSON to a file, whole or not at all, or to stdout."""
    import json

    from nnac.program import write_file

    text = json.dumps(data, indent=indent, allow_nan=False) + "\n"
    if path is None:
        click.echo(text, nl=False)
    else:
        write_file(path, text.encode())


@cli.command()
@click.argument("program")
@click.option("--disasm", is_flag=True, help="List the instructions.")
@click.option("--tensors", is_flag=True, help="List all tensors with their addresses.")
@click.option("--memory", is_flag=True, help="Show what is alive in the scratchpad per layer, and at the peak.")
@click.option("--weights", is_flag=True, help="Show what each layer's weights take, against entropy, int8 and float32.")
@click.option(
    "--json", "json_path", metavar="FILE", help="With --weights: write them as JSON (- for stdout, then nothing else)."
)
@click.option("--selftest", is_flag=True, help="Run the known answer; exit code 1 if an output differs.")
def inspect(
    program: str, disasm: bool, tensors: bool, memory: bool, weights: bool, json_path: str | None, selftest: bool
) -> None:
    """Show what is in a PROGRAM (.nna)."""
    if json_path is not None and not weights:
        raise click.UsageError("--json belongs to --weights")
    path = writable(json_path, program) if json_path not in (None, "-") else None
    import hashlib

    from nnac import account, report
    from nnac.program import dumps

    blob = _load(program)
    data = dumps(blob)
    if json_path is not None:
        _write_json(path, account.to_json(blob, len(data)), indent=1)
    if json_path == "-":
        return
    show(
        report.header(blob, len(data), hashlib.sha256(data).hexdigest()),
        "",
        report.interface(blob),
        "",
        report.memory_map(blob),
    )
    if tensors:
        show("", report.tensors(blob))
    if memory:
        show("", report.scratchpad(blob))
    if weights:
        rows = account.weight_account(blob)
        show("", report.weights(rows, account.blob_account(blob, rows, len(data))))
    if disasm:
        _list_instructions(blob)
    if selftest:
        _selftest(blob)


def _list_instructions(program: Program) -> None:
    from nnac.disasm import disassemble
    from nnac.report import printable

    click.echo()
    for line in disassemble(program):
        click.echo("\n".join(map(printable, line.split("\n"))))


def _selftest(program: Program) -> None:
    """Run the known answer on the emulator.

    Raises:
        ProgramError: an output differs from what the reference gave when the program was compiled.
    """
    import hashlib

    from nnac.emulator import Emulator
    from nnac.reference import seeded

    announce_kernels("conv")
    answer, types = program.known_answer, {name: program.tensor(name).type for name in program.inputs}
    outputs = Emulator(program).run(seeded(types, answer.seed))
    wrong = [
        f"output {name!r}"
        for name in outputs
        if hashlib.sha256(outputs[name].tobytes()).hexdigest() != answer.digests.get(name)
    ]
    raise_all(ProgramError, "the known answer does not come out; the blob, or the emulator here, is wrong:", wrong)
    click.echo(f"\nselftest: {len(outputs)} of {len(outputs)} outputs bit for bit as the reference gave them")


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
@_target
@click.option(
    "--calibrate",
    default="random",
    show_default=True,
    metavar="NPZ|FOLDER|random",
    help="Samples, as for `nnac compile`; `random` is enough for time and memory.",
)
@_method
@_shape
@_freeze
@click.option("--csv", "csv_path", metavar="FILE", help="Write the table as CSV (- for stdout, then nothing else).")
def sweep(
    model: str,
    variants: tuple[str, ...],
    target: str,
    calibrate: str,
    method: str,
    shapes: tuple[tuple[str, Shape], ...],
    freeze: tuple[tuple[str, float], ...],
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
        found = run_sweep(
            model, target, vary, calibrate, method=method, shapes=dict(shapes), freeze=dict(freeze), progress=progress
        )
    if path is not None:
        write_file(path, to_csv(found).encode())
    if csv_path == "-":
        click.echo(to_csv(found), nl=False)
    else:
        show(points(found))


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
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
def ops(markdown: bool) -> None:
    """List the supported ONNX operators."""
    from nnac import report
    from nnac.frontend import supported_operators

    if markdown:
        click.echo(report.operators_markdown(supported_operators()))
    else:
        show(report.operators(supported_operators()))


# -- demo ----------------------------------------------------------------------------------------------------------


@cli.command()
@_target
def demo(target: str) -> None:
    """Hear spoken digits with a small network.

    Compiles examples/digits for the machine, runs its clips bit-exactly, and reports.
    """
    folder = _digits()
    from nnac import compiler
    from nnac.program import dumps

    announce_kernels("conv")
    compiled = compiler.compile(folder / "digits.onnx", target, folder / "calibration.npz")
    read, clips = _features(folder), sorted((folder / "clips").glob("*.wav"))
    right = sum(_hear(compiled, read, clip) for clip in clips)
    click.echo(f"\n{right} of {len(clips)} clips heard right ({right / len(clips):.1%})\n")
    _screen(compiled.simulate(), len(dumps(compiled.program)))


def _digits() -> Path:
    """Return the folder of the example.

    Raises:
        NnacError: nnac is installed without its repository.
    """
    import nnac

    folder = Path(nnac.__file__).parent.parent / "examples" / "digits"
    missing = [name for name in DIGITS if not (folder / name).exists()]
    if missing:
        raise NnacError(
            f"the demo needs {', '.join(missing)} in {str(folder)!r}: it runs from a clone of the "
            "repository (`pip install -e .` there), not from an installed package alone"
        )
    return folder


def _features(folder: Path) -> Callable[[Path], Array]:
    """Return the example's reader of wav files."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("nnac_demo_features", folder / "features.py")
    if spec is None or spec.loader is None:
        raise NnacError(f"{str(folder / 'features.py')!r} cannot be loaded")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    read: Callable[[Path], Array] = module.read_features
    return read


def _hear(model: CompiledModel, read: Callable[[Path], Array], clip: Path) -> bool:
    """Run one clip, print its line, and return whether the digit is right."""
    (name,) = _inputs(model.program)
    (probabilities,) = model.run({name: read(clip)}).values()
    spoken, heard = clip.name[0], str(probabilities.argmax())
    verdict = "" if spoken == heard else "  wrong"
    click.echo(f"{clip.name:<20} spoken {spoken}  heard {heard}  probability {probabilities.max():.3f}{verdict}")
    return spoken == heard


if __name__ == "__main__":
    main()
