"""The demo: spoken digits, heard by a small network on the emulator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnac.cli import arguments
from nnac.errors import NnacError
from nnac.terminal import announce_kernels, show

if TYPE_CHECKING:
    from nnac.compiled import CompiledModel
    from nnac.types import Array

DIGITS = ("digits.onnx", "calibration.npz", "features.py", "clips")


@click.command()
@arguments.target
@arguments.threads
def demo(target: str, threads: int) -> None:
    """Hear spoken digits with a small network.

    Compiles examples/digits for the machine, runs its clips bit-exactly, and reports.
    """
    folder = _digits()
    from nnac import compiler
    from nnac.program import dumps
    from nnac.report import screen

    announce_kernels("conv")
    compiled = compiler.compile(folder / "digits.onnx", target, folder / "calibration.npz")
    read, clips = _features(folder), sorted((folder / "clips").glob("*.wav"))
    right = sum(_hear(compiled, read, clip, threads) for clip in clips)
    click.echo(f"\n{right} of {len(clips)} clips heard right ({right / len(clips):.1%})\n")
    show(screen(compiled.simulate(), len(dumps(compiled.program))))


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


def _hear(model: CompiledModel, read: Callable[[Path], Array], clip: Path, threads: int) -> bool:
    """Run one clip, print its line, and return whether the digit is right."""
    from nnac.border import free_inputs

    (name,) = free_inputs(model.program)
    (probabilities,) = model.run({name: read(clip)}, threads=threads).values()
    spoken, heard = clip.name[0], str(probabilities.argmax())
    verdict = "" if spoken == heard else "  wrong"
    click.echo(f"{clip.name:<20} spoken {spoken}  heard {heard}  probability {probabilities.max():.3f}{verdict}")
    return spoken == heard
