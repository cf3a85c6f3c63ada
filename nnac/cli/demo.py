"""The demos: spoken digits, heard by a small network, and sequences of digits, heard by a streaming transducer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from nnac.cli import arguments
from nnac.errors import NnacError
from nnac.terminal import announce_kernels, show

if TYPE_CHECKING:
    from nnac.compiled import CompiledModel
    from nnac.transducer import Transducer
    from nnac.types import Array

DIGITS = ("digits.onnx", "calibration.npz", "features.py", "clips")
MODELS = {"float": "8-bit weights", "gq5": "GQ, 5-bit weights"}
"""Folders of the transducer's weights; the last one decodes the clips."""
SEQUENCES = (*(f"models/{name}" for name in MODELS), "features.py", "clips")


@click.command()
@arguments.target
@click.option("--transducer", is_flag=True, help="Hear sequences of digits, as a stream.")
def demo(target: str, transducer: bool) -> None:
    """Hear spoken digits with a small network.

    Compiles examples/digits (or examples/transducer) for the machine, runs its clips bit-exactly, and reports.
    """
    if transducer:
        return _sequences(_example("transducer", SEQUENCES), target)
    _digits(_example("digits", DIGITS), target)


def _example(name: str, needed: Sequence[str]) -> Path:
    """Return the folder of an example.

    Raises:
        NnacError: nnac is installed without its repository.
    """
    import nnac

    folder = Path(nnac.__file__).parent.parent / "examples" / name
    missing = [each for each in needed if not (folder / each).exists()]
    if missing:
        raise NnacError(
            f"the demo needs {', '.join(missing)} in {str(folder)!r}: it runs from a clone of the "
            "repository (`pip install -e .` there), not from an installed package alone"
        )
    return folder


def _features(folder: Path) -> ModuleType:
    """Return the example's reader of wav files."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("nnac_demo_features", folder / "features.py")
    if spec is None or spec.loader is None:
        raise NnacError(f"{str(folder / 'features.py')!r} cannot be loaded")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- digits --------------------------------------------------------------------------------------------------------


def _digits(folder: Path, target: str) -> None:
    from nnac import compiler
    from nnac.program import dumps
    from nnac.report import screen

    announce_kernels("conv")
    compiled = compiler.compile(folder / "digits.onnx", target, folder / "calibration.npz")
    read, clips = _features(folder).read_features, sorted((folder / "clips").glob("*.wav"))
    right = sum(_hear(compiled, read, clip) for clip in clips)
    click.echo(f"\n{right} of {len(clips)} clips heard right ({right / len(clips):.1%})\n")
    show(screen(compiled.simulate(), len(dumps(compiled.program))))


def _hear(model: CompiledModel, read: Callable[[Path], Array], clip: Path) -> bool:
    """Run one clip, print its line, and return whether the digit is right."""
    from nnac.border import free_inputs

    (name,) = free_inputs(model.program)
    (probabilities,) = model.run({name: read(clip)}).values()
    spoken, heard = clip.name[0], str(probabilities.argmax())
    verdict = "" if spoken == heard else "  wrong"
    click.echo(f"{clip.name:<20} spoken {spoken}  heard {heard}  probability {probabilities.max():.3f}{verdict}")
    return spoken == heard


# -- sequences -----------------------------------------------------------------------------------------------------


def _sequences(folder: Path, target: str) -> None:
    from nnac.transducer import Utterance, evaluate, waiting

    announce_kernels("conv")
    models = {name: _transducer(folder / "models" / name, target) for name in MODELS}
    features, clips = _features(folder), sorted((folder / "clips").glob("*.wav"))
    spoken = [[int(digit) + 1 for digit in clip.stem.split("_")[0]] for clip in clips]
    utterances = [Utterance(features.read_features(c), words) for c, words in zip(clips, spoken, strict=True)]
    model = list(models.values())[-1]
    found, table = evaluate(model, utterances, features.STEP_MS), model.costs()
    for clip, words, decoding in zip(clips, spoken, found.decodings, strict=True):
        wait = waiting(decoding, table, features.STEP_MS).latency_ms
        click.echo(
            f"{clip.name:<24} spoken {_shown(words):<8} heard {_shown(decoding.tokens):<8} {wait:.3f} ms after its end"
        )
    click.echo(f"\nword error rate {found.word_error_rate:.1%} on {len(clips)} clips, {target}\n")
    for name, each in models.items():
        click.echo(_summary(MODELS[name], each))


def _transducer(folder: Path, target: str) -> Transducer:
    """Return the compiled parts of a folder as one."""
    import numpy as np

    from nnac import compiler
    from nnac.transducer import PARTS, Transducer

    parts = [
        compiler.compile(folder / f"{part}.onnx", target, encodings=folder / f"{part}.encodings") for part in PARTS
    ]
    return Transducer(*parts, embedding=np.load(folder / "embedding.npy"))


def _shown(tokens: Sequence[int]) -> str:
    return "".join(str(token - 1) for token in tokens)


def _summary(title: str, model: Transducer) -> str:
    """Return what a transducer occupies, and what a step of it takes."""
    from nnac.program import dumps

    blobs = sum(len(dumps(program)) for program in model.programs.values())
    costs = model.costs()
    step = costs["encoder"].cold + costs["joiner"].cold
    return f"{title:<18} {blobs / 1e3:6.1f} kB, {step.ms:.3f} ms and {step.nbytes / 1e3:.1f} kB per step of 30 ms"
