"""A training loop: seeds, checkpoints that resume bit by bit, metrics as CSV and JSON, a picture of the curves."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnac.errors import ModelError, one_line
from nnac.program import write_file
from nnac.terminal import progress_bar
from nnac.train.compressors import Compression

Metrics = dict[str, float]
Loss = Callable[[int, np.random.Generator], Tensor]
CHECKPOINT, TABLE, SUMMARY, PICTURE = "checkpoint.pt", "metrics.csv", "metrics.json", "curves.svg"


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a training does beside learning.

    Attributes:
        steps: of the optimizer.
        seed: of torch's generators; each step's data come from a generator of this seed and the step's number.
        folder: for checkpoints and metrics; None writes nothing.
        save_every: steps between checkpoints, and before each evaluation.
        clip: largest norm of the gradient; 0: none.
        resume: go on from the folder's checkpoint, if there is one.
    """

    steps: int
    seed: int = 0
    folder: Path | None = None
    save_every: int = 100
    clip: float = 5.0
    resume: bool = True


@dataclass(slots=True)
class History:
    """Metrics by step."""

    rows: list[Metrics] = field(default_factory=list)

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return steps and values of a metric where it was measured."""
        known = [row for row in self.rows if name in row]
        return [row["step"] for row in known], [row[name] for row in known]

    @property
    def names(self) -> list[str]:
        """Names of all metrics, the step first."""
        return list(dict.fromkeys(["step", *(name for row in self.rows for name in row)]))

    def write(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the table, the summary and the picture."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        last = {name: values[-1] for name in self.names if (values := self.column(name)[1])}
        write_file(folder / TABLE, text.getvalue().encode())
        write_file(folder / SUMMARY, (json.dumps({**about, "last": last}, indent=1) + "\n").encode())
        shown = [name for name in self.names if name not in ("step", "seconds")]
        write_file(folder / PICTURE, curves({name: self.column(name) for name in shown}).encode())


def train(
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    compression: Compression | None = None,
    scheduler: Any = None,
    evaluate: Callable[[], Metrics] | None = None,
) -> History:
    """Train a model and return its metrics.

    Resumed training is the same training: what a step does depends on the seed and its number, and a checkpoint holds
    model, optimizer, scheduler and torch's generators.

    Args:
        model: whose parameters the optimizer has; a `Twin` too.
        loss: from the number of a step and a generator for its data to a scalar.
        optimizer: of torch.
        schedule: see there.
        compression: whose regularizers are added and whose hooks are called; hardened at the end.
        scheduler: of the learning rate, stepped after every step.
        evaluate: further metrics, called at every checkpoint and at the end.

    Raises:
        ModelError: a checkpoint does not belong to this training, or the loss is not finite.
    """
    torch.manual_seed(schedule.seed)
    run = _Run(model, optimizer, scheduler, compression, History())
    done = run.load(schedule) if schedule.resume else 0
    begin = time.monotonic() - (run.history.rows[-1]["seconds"] if done else 0.0)
    with progress_bar() as advance:
        for step in range(done, schedule.steps):
            value = run.step(step, loss, schedule)
            row = {"step": float(step + 1), "loss": value, "seconds": round(time.monotonic() - begin, 3)}
            run.history.rows.append(row)
            last = step + 1 == schedule.steps
            if last and compression is not None:
                compression.harden()
            if last or (step + 1) % schedule.save_every == 0:
                row |= _evaluated(model, evaluate)
                run.save(schedule, step + 1)
            if advance is not None:
                advance("training", step + 1, schedule.steps)
    return run.history


def _evaluated(model: nn.Module, evaluate: Callable[[], Metrics] | None) -> Metrics:
    if evaluate is None:
        return {}
    training = model.training
    model.eval()
    with torch.no_grad():
        found = evaluate()
    model.train(training)
    return found


@dataclass(slots=True)
class _Run:
    """A training under way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    compression: Compression | None
    history: History

    def step(self, number: int, loss: Loss, schedule: Schedule) -> float:
        """Do one step and return its loss."""
        self.optimizer.zero_grad()
        value = loss(number, np.random.default_rng((schedule.seed, number)))
        found = float(value.detach())
        if not isfinite(found):
            raise ModelError(f"step {number}: the loss is {found}; lower the learning rate")
        total = value + self.compression.penalty() if self.compression is not None else value
        total.backward()  # type: ignore[no-untyped-call]
        if schedule.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), schedule.clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.compression is not None:
            self.compression.step((number + 1) / schedule.steps)
        return found

    def save(self, schedule: Schedule, done: int) -> None:
        """Write checkpoint and metrics; each file then is whole, or what it was."""
        if schedule.folder is None:
            return
        schedule.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "done": done,
            "steps": schedule.steps,
            "seed": schedule.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else {},
            "count": self.compression.count if self.compression is not None else 0,
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "history": self.history.rows,
        }
        data = io.BytesIO()
        torch.save(content, data)
        write_file(schedule.folder / CHECKPOINT, data.getvalue())
        self.history.write(schedule.folder, {"steps": schedule.steps, "seed": schedule.seed})

    def load(self, schedule: Schedule) -> int:
        """Take up the folder's checkpoint; return how many steps it has done, 0 where there is none."""
        path = schedule.folder / CHECKPOINT if schedule.folder is not None else None
        if path is None or not path.exists():
            return 0
        try:
            content = torch.load(os.fspath(path), map_location="cpu", weights_only=True)
            if (content["steps"], content["seed"]) != (schedule.steps, schedule.seed):
                raise ModelError(f"it is of {content['steps']} steps with seed {content['seed']}")
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(content["scheduler"])
        except Exception as error:  # torch raises about anything on a file that is damaged or of another model
            raise ModelError(f"checkpoint {str(path)!r} cannot be resumed: {one_line(error)}") from None
        if self.compression is not None:
            self.compression.count = int(content["count"])
        torch.set_rng_state(content["random"])
        if content.get("random_gpu") and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["random_gpu"])
        self.history.rows = list(content["history"])
        return int(content["done"])


# -- pictures ------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, EDGE = 640, 160, 48
Curve = tuple[Sequence[float], Sequence[float]]


def curves(series: Mapping[str, Curve]) -> str:
    """Return an SVG of curves below each other, each over its own range.

    Args:
        series: steps and values by name; those with fewer than two values are left out.
    """
    shown = {name: curve for name, curve in series.items() if len(curve[0]) > 1}
    parts = [_panel(name, *curve, HEIGHT * i) for i, (name, curve) in enumerate(shown.items())]
    size = f'width="{WIDTH}" height="{max(1, len(shown)) * HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "".join(parts) + "</svg>\n"


def _panel(name: str, steps: Sequence[float], values: Sequence[float], top: int) -> str:
    low, high = min(values), max(values)
    span, reach = (high - low) or 1.0, (steps[-1] - steps[0]) or 1.0
    inner, height = WIDTH - 2 * EDGE, HEIGHT - EDGE
    points = " ".join(
        f"{EDGE + inner * (s - steps[0]) / reach:.1f},{top + 24 + height * (high - v) / span:.1f}"
        for s, v in zip(steps, values, strict=True)
    )
    labels = (
        f'<text x="{EDGE}" y="{top + 14}">{name}</text>'
        f'<text x="4" y="{top + 28}">{high:.3g}</text><text x="4" y="{top + 24 + height}">{low:.3g}</text>'
        f'<text x="{WIDTH - EDGE}" y="{top + HEIGHT - 8}" text-anchor="end">{steps[-1]:g} steps</text>'
    )
    frame = f'<rect x="{EDGE}" y="{top + 24}" width="{inner}" height="{height}" fill="none" stroke="#ccc"/>'
    return f'{labels}{frame}<polyline points="{points}" fill="none" stroke="#1f77b4"/>\n'
