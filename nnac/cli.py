"""The command line: words on a terminal. Results go to stdout; progress, notes and errors to stderr.

Exit codes: 0 done; 1 an error or a limit that is not kept; 2 wrong usage; 130 interrupted. Everything heavy is imported
inside the commands, so that `nnac --help` is instant.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nnac import __version__
from nnac.errors import ModelError, NnacError, ProgramError, raise_all

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nnac.compiled import CompiledModel
    from nnac.program import Program
    from nnac.timing import Timeline
    from nnac.types import Array

Advance = Callable[[str, int, int | None], None]
Shape = tuple[int, ...]

INTERRUPTED = 130
SHOWN_LAYERS = 15
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}
DIGITS = ("digits.onnx", "calibration.npz", "features.py", "clips")


# -- the frame -----------------------------------------------------------------------------------------------------


class _Commands(click.Group):
    """Commands whose errors come out as one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            _fail(error)


def _fail(error: BaseException) -> NoReturn:
    """Report an error and leave with its exit code; a broken pipe is click's."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        raise error
    if os.environ.get("NNAC_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        click.echo("nnac: interrupted", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"nnac: error: {_described(error)}", err=True)
    sys.exit(1)


def _described(error: BaseException) -> str:
    """Return the message for an error; text from models is made printable line by line."""
    from nnac.report import printable

    if isinstance(error, NnacError):
        return "\n".join(map(printable, str(error).split("\n")))
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        where = f"{str(error.filename)!r}: " if error.filename else ""
        return printable(f"{where}{error.strerror}")
    what = printable(f"{type(error).__name__}: {error}")
    return f"this is a fault of nnac, please report it ({what}); NNAC_DEBUG=1 shows the traceback"


def main() -> None:
    """Run the command line; the entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="nnac")
    except KeyboardInterrupt as error:
        _fail(error)


def _show(*parts: RenderableType) -> None:
    """Print renderables to stdout: coloured and as wide as a terminal, or plain and 80 columns wide in a pipe."""
    from shutil import get_terminal_size

    from nnac.report import text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    click.echo(text(*parts, width=get_terminal_size().columns if terminal else None), nl=False)


def _note(text: str) -> None:
    click.echo(f"nnac: {text}", err=True)


def _announce_kernels() -> None:
    """Say why the first emulation on a machine takes longer."""
    from nnac import kernels

    if kernels.is_cold():
        _note(f"compiling kernels for this machine (first use, cached in {kernels.cache_folder()})")


@contextmanager
def _progress() -> Iterator[Advance | None]:
    """Give a callback that moves a progress bar, where there is a terminal to see it."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield advance


# -- parameters ----------------------------------------------------------------------------------------------------


def _amount(value: str) -> int:
    """Return a whole number, with K or M for 1024 or 1024 squared."""
    found = re.fullmatch(r"([0-9]{1,18})([KM]?)", value.upper())
    if found is None:
        raise click.BadParameter(f"{value!r} is not a whole number, or one with K or M (such as 512K)")
    return int(found[1]) * UNITS[found[2]]


def _named_shape(value: str) -> tuple[str, Shape]:
    """Return an input's name and its full shape: name=1,3,224,224."""
    name, _, sides = value.rpartition("=")
    if not name or not re.fullmatch(r"[1-9][0-9]{0,17}(,[1-9][0-9]{0,17})*", sides):
        raise click.BadParameter(f"{value!r} is not a name and its shape (such as image=1,3,224,224)")
    return name, tuple(map(int, sides.split(",")))


_target = click.option("--target", default="nna8", show_default=True, metavar="NAME|TOML",
                       help="Machine: a name of `nnac targets`, or a .toml file.")
_shape = click.option("--shape", "shapes", type=_named_shape, multiple=True, metavar="NAME=1,3,224,224",
                      help="Full shape of an input with open dimensions; may be repeated.")
_input = click.option("--input", "source", required=True, metavar="NPZ",
                      help="Input arrays by name, each of the input's shape or with a leading axis of samples.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nnac", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile neural networks for fixed-point 8-bit accelerators, run them bit-exactly, and say how long they take."""


# -- compile -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option("-o", "--output", metavar="NNA", help="Where to write the program; default: the model's name, here.")
@_target
@click.option("--calibrate", metavar="NPZ|FOLDER|random", help="Samples: one array per input, first axis = samples; "
              "`random` for timing studies only.")
@click.option("--method", default="minmax", show_default=True, metavar="minmax|percentile|mse",
              help="How ranges come from the samples.")
@_shape
@click.option("--check", is_flag=True, help="Compare every tensor between all stages and the emulator, bit for bit.")
@click.option("--max-sram", type=_amount, metavar="N", help="Budget: bytes of scratchpad (512K, 1M).")
@click.option("--max-flash", type=_amount, metavar="N", help="Budget: bytes of constants.")
@click.option("--max-cycles", type=_amount, metavar="N", help="Budget: cycles of one inference.")
def compile(model: str, output: str | None, target: str, calibrate: str | None, method: str,
            shapes: tuple[tuple[str, Shape], ...], check: bool, max_sram: int | None, max_flash: int | None,
            max_cycles: int | None) -> None:
    """Compile an ONNX MODEL into a program (.nna) for a machine."""
    if calibrate is None:
        raise ModelError("no calibration: pass --calibrate samples.npz (one array per input, first axis = samples) or "
                         "a folder of such files; or --calibrate random, for shape and timing studies only")
    path = _writable(output or f"{Path(model).stem}.nna", model)
    from nnac import compiler
    from nnac.program import dumps, write_file

    if check:
        _announce_kernels()
    budgets = compiler.Budgets(max_sram, max_flash, max_cycles)
    with _progress() as progress:
        compiled = compiler.compile(model, target, calibrate, method=method, shapes=dict(shapes), check=check,
                                    budgets=budgets, progress=progress)
    blob = dumps(compiled.program)
    write_file(path, blob)
    _screen(compiled.simulate(), len(blob), path)


def _screen(timeline: Timeline, blob_bytes: int, path: Path | None = None) -> None:
    from nnac.report import screen

    _show(screen(timeline, blob_bytes, str(path) if path else ""))


def _writable(name: str, *sources: str) -> Path:
    """Return the path of an output before anything is computed.

    Raises:
        ProgramError: it cannot be written, is no regular file, or is one of the files that are read.
    """
    path = Path(name)
    problems = [(not path.parent.is_dir(), "its folder does not exist"),
                (path.exists() and not path.is_file(), "it is not a regular file"),
                (path.parent.is_dir() and not os.access(path.parent, os.W_OK), "its folder is not writable"),
                (any(_same(path, Path(source)) for source in sources), "it is read by the same command")]
    for found, reason in problems:
        if found:
            raise ProgramError(f"{name!r} cannot be written: {reason}")
    return path


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


# -- run and compare -----------------------------------------------------------------------------------------------


@cli.command()
@click.argument("program")
@_input
@click.option("-o", "--output", metavar="NPZ", help="Where to write the outputs.")
@click.option("--raw", is_flag=True, help="Outputs as int8, instead of reals.")
def run(program: str, source: str, output: str | None, raw: bool) -> None:
    """Run a PROGRAM (.nna) on inputs, bit-exactly."""
    path = _writable(output, program, source) if output else None
    from nnac.compiled import CompiledModel
    from nnac.program import write_file
    from nnac.report import arrays

    model = CompiledModel(_load(program))
    samples, single = _samples(source, _inputs(model.program))
    _announce_kernels()
    with _progress() as progress:
        found = _run(model, samples, single, raw, progress)
    if path is not None:
        write_file(path, _npz(found))
    _show(arrays(found))


def _load(path: str) -> Program:
    """Return a validated program, without the imports that only compiling needs."""
    from nnac.validate import load

    return load(path)


def _warn_random(program: Program) -> None:
    if program.calibration == "random":
        _note("note: calibrated on random data: values mean nothing, only timing does")


def _inputs(program: Program) -> dict[str, Shape]:
    """Return ONNX names and shapes of the inputs."""
    from nnac.report import onnx_shape

    return {tensor.onnx_name: onnx_shape(tensor) for tensor in map(program.tensor, program.inputs)}


def _run(model: CompiledModel, samples: Iterable[Mapping[str, Array]], single: bool, raw: bool,
         progress: Advance | None) -> dict[str, Array]:
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
@click.option("--all", "everything", is_flag=True, help=f"All layers, not only the {SHOWN_LAYERS} worst.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Exit code 1 if an output is below.")
def diff(model: str, program: str, source: str, shapes: tuple[tuple[str, Shape], ...], everything: bool,
         min_sqnr: float | None) -> None:
    """Compare a PROGRAM (.nna) with its float MODEL.

    Per layer: signal-to-quantization-noise ratio alone and with all errors before it, largest difference in steps of
    the output, and values outside the range.
    """
    blob = _load(program)
    from nnac import compiler
    from nnac.report import comparison

    samples, _ = _samples(source, _inputs(blob))
    _announce_kernels()
    _warn_random(blob)
    with _progress() as progress:
        result = compiler.diff(model, blob, samples, dict(shapes) or None, progress)
    _show(comparison(result, None if everything else SHOWN_LAYERS))
    far = [f"output {name!r}: {sqnr:.1f} dB" for name, sqnr in result.outputs().items()
           if min_sqnr is not None and not sqnr >= min_sqnr]
    raise_all(NnacError, f"below --min-sqnr {min_sqnr}:", far)


# -- read a program ------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("program")
@click.option("--json", "json_path", metavar="FILE", help="Write the report as JSON (- for stdout, then nothing else).")
@click.option("--trace", "trace_path", metavar="FILE", help="Write the timeline in Chrome's trace format (Perfetto).")
@click.option("--explain", is_flag=True, help="Print the contract of the timing model.")
def simulate(program: str, json_path: str | None, trace_path: str | None, explain: bool) -> None:
    """Time a PROGRAM (.nna) and say what bounds it."""
    paths = {path: _writable(path, program) for path in (json_path, trace_path) if path not in (None, "-")}
    from nnac import report, timing
    from nnac.program import dumps

    blob = _load(program)
    timeline, size = timing.simulate(blob), len(dumps(blob))
    if json_path is not None:
        _write_json(paths.get(json_path), report.to_json(timeline, size), indent=1)
    if trace_path is not None:
        _write_json(paths.get(trace_path), report.to_trace(timeline))
    if "-" not in (json_path, trace_path):
        _screen(timeline, size, Path(program))
    if explain:
        click.echo(f"\n{(timing.__doc__ or '').strip()}")


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
@click.option("--selftest", is_flag=True, help="Run the known answer; exit code 1 if an output differs.")
def inspect(program: str, disasm: bool, tensors: bool, selftest: bool) -> None:
    """Show what is in a PROGRAM (.nna)."""
    import hashlib

    from nnac import report
    from nnac.program import dumps

    blob = _load(program)
    data = dumps(blob)
    _show(report.header(blob, len(data), hashlib.sha256(data).hexdigest()), "", report.interface(blob), "",
          report.memory_map(blob))
    if tensors:
        _show("", report.tensors(blob))
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

    _announce_kernels()
    answer, shapes = program.known_answer, {name: program.tensor(name).type.shape for name in program.inputs}
    outputs = Emulator(program).run(seeded(shapes, answer.seed))
    wrong = [f"output {name!r}" for name in outputs
             if hashlib.sha256(outputs[name].tobytes()).hexdigest() != answer.digests.get(name)]
    raise_all(ProgramError, "the known answer does not come out; the blob, or the emulator here, is wrong:", wrong)
    click.echo(f"\nselftest: {len(outputs)} of {len(outputs)} outputs bit for bit as the reference gave them")


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
        _show(report.targets(map(load_target, target_names())))
    else:
        _show(report.figures(load_target(name)))


@cli.command()
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
def ops(markdown: bool) -> None:
    """List the supported ONNX operators."""
    from nnac import report
    from nnac.frontend import supported_operators

    if markdown:
        click.echo(report.operators_markdown(supported_operators()))
    else:
        _show(report.operators(supported_operators()))


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

    compiled = compiler.compile(folder / "digits.onnx", target, folder / "calibration.npz")
    _announce_kernels()
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
        raise NnacError(f"the demo needs {', '.join(missing)} in {str(folder)!r}: it runs from a clone of the "
                        "repository (`pip install -e .` there), not from an installed package alone")
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
