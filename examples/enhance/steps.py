"""A network as something that takes one step after the other: in float, recorded, or compiled and emulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnac import compiler
from nnac.compiled import CompiledModel
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.types import Array, First

Step = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Samples = list[Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Part:
    """One ONNX model of `shared/models`.

    Attributes:
        name: of its folder.
        states: inputs that are kept between steps, and the outputs that become them.
        shapes: of inputs with dynamic dimensions.
    """

    name: str
    states: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def path(self, assets: Path) -> Path:
        """Return the model's file."""
        return assets / "models" / self.name / f"{self.name}.onnx"

    def float_step(self, assets: Path) -> Step:
        """Return the model in onnxruntime, states zero."""
        return FloatModel(prepare(self.path(assets), self.shapes or None), states=self.states).run

    def compiled(self, assets: Path, samples: Samples, **options: Any) -> CompiledModel:
        """Return the model compiled with calibration along `samples`; options as of `nnac.compile`."""
        return compiler.compile(
            self.path(assets), calibration=samples, states=self.states, shapes=self.shapes or None, **options
        )


@dataclass(slots=True)
class Recorder:
    """A step that remembers what it was given, as a sequence to calibrate along."""

    step: Step
    samples: Samples = field(default_factory=list)

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.samples.append(dict(inputs) if self.samples else First(inputs))
        return self.step(inputs)
