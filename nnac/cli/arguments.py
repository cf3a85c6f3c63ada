"""What commands take: options that several of them share, and the files that they read and write."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnac.terminal import Shape, announce_kernels, named_number, named_shape, named_state, note

if TYPE_CHECKING:
    from nnac.program import Program
    from nnac.types import Array

Command = Callable[..., None]

target = click.option(
    "--target",
    default="nna8",
    show_default=True,
    metavar="NAME|TOML",
    help="Machine: a name of `nnac targets`, or a .toml file.",
)
method = click.option(
    "--method",
    default="minmax",
    show_default=True,
    metavar="minmax|percentile|mse",
    help="How ranges come from the samples.",
)
period = click.option(
    "--period-ms",
    type=float,
    required=True,
    metavar="MS",
    help="Milliseconds from one frame to the next.",
)
weights = click.option(
    "--weights",
    metavar="SPEC",
    help="Bits below eight: 5, 4:lloyd_max:gptq, auto:BYTES, auto:30dB, or a .toml file with rules per layer.",
)
source = click.option(
    "--input",
    "source",
    required=True,
    metavar="NPZ",
    help="Input arrays by name, each of the input's shape or with a leading axis of samples (steps, with states).",
)
threads = click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Threads that share large layers; they change no bit.",
)
json_output = click.option(
    "--json", "json_path", metavar="FILE", help="Write the report as JSON (- for stdout, then nothing else)."
)
shape = click.option(
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
_state = click.option(
    "--state",
    "states",
    type=named_state,
    multiple=True,
    metavar="h_in=h_out",
    help="An input that the device keeps between calls, and its next value; may be repeated; found by their names "
    "without it; `none` for no states.",
)


def opens_model(command: Command) -> Command:
    """Add --shape and --freeze to a command that opens an ONNX model: `opening` is what `nnac.compiler` takes."""

    @shape
    @_freeze
    @functools.wraps(command)
    def wrapped(shapes: tuple[tuple[str, Shape], ...], freeze: tuple[tuple[str, float], ...], **others: Any) -> None:
        command(opening={"shapes": dict(shapes) or None, "freeze": dict(freeze)}, **others)

    return wrapped


def names_states(command: Command) -> Command:
    """Add --state to a command that `opens_model`: entered into `opening`."""

    @_state
    @functools.wraps(command)
    def wrapped(states: tuple[tuple[str, str] | None, ...], opening: dict[str, Any], **others: Any) -> None:
        command(opening=opening | {"states": _states(states)}, **others)

    return wrapped


def _states(given: tuple[tuple[str, str] | None, ...]) -> dict[str, str] | None:
    """Return the states as `nnac.compile` takes them: None to find them by name, empty for none."""
    pairs = [pair for pair in given if pair is not None]
    if len(pairs) < len(given) and pairs:
        raise click.BadParameter("--state none does not go together with other states")
    twice = next((name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1), None)
    if twice is not None:
        raise click.BadParameter(f"--state: input {twice!r} is given more than once")
    return dict(pairs) if given else None


# -- files ---------------------------------------------------------------------------------------------------------


def load_program(path: str, runs: bool = True) -> Program:
    """Return a program, validated for running or for timing, without the imports that only compiling needs."""
    from nnac.validate import load

    if runs:
        announce_kernels("codec")
    return load(path, runs=runs)


def warn_random(program: Program) -> None:
    if program.calibration == "random":
        note("note: calibrated on random data: values mean nothing, only timing does")


def samples_of(source: str, shapes: Mapping[str, Shape]) -> tuple[Iterable[Mapping[str, Array]], bool]:
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


def npz(found: Mapping[str, Array]) -> bytes:
    """Return the bytes of an .npz file; equal arrays give equal bytes, and any name will do (unlike `numpy.savez`)."""
    import zipfile

    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in found.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def write_json(path: Path | None, data: Mapping[str, Any], indent: int | None = None) -> None:
    """Write JSON to a file, whole or not at all, or to stdout."""
    import json

    from nnac.program import write_file

    text = json.dumps(data, indent=indent, allow_nan=False) + "\n"
    if path is None:
        click.echo(text, nl=False)
    else:
        write_file(path, text.encode())
