"""Commands that read a program: how long it takes, what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnac.cli.arguments import json_output, load_program, write_json
from nnac.errors import ProgramError, raise_all
from nnac.terminal import announce_kernels, changes, note, show, writable

if TYPE_CHECKING:
    from nnac.program import Program
    from nnac.report import Changes
    from nnac.targets import Target
    from nnac.timing import Timeline


@click.command()
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
@json_output
@click.option("--trace", "trace_path", metavar="FILE", help="Write the timeline in Chrome's trace format (Perfetto).")
@click.option("--stream", "streamed", is_flag=True, help="Time a call every --period-ms, states and weights kept.")
@click.option("--period-ms", type=float, metavar="MS", help="With --stream: milliseconds from one call to the next.")
@click.option("--steps", type=click.IntRange(1, 1_000_000), help="With --stream: calls that are played; else 100.")
@click.option("--explain", is_flag=True, help="Print the contract of the timing model.")
def simulate(
    program: str,
    settings: tuple[str, ...],
    warm: bool,
    layers: bool,
    json_path: str | None,
    trace_path: str | None,
    streamed: bool,
    period_ms: float | None,
    steps: int | None,
    explain: bool,
) -> None:
    """Time a PROGRAM (.nna) and say what bounds it."""
    _check_usage(streamed, period_ms, steps, warm or layers or trace_path is not None)
    paths = {path: writable(path, program) for path in (json_path, trace_path) if path and path != "-"}
    from nnac import report, timing

    blob = load_program(program, runs=False)
    machine = timing.what_if(blob, changes(settings))
    changed = report.changed(blob.target, machine)
    if settings and not changed:
        note("note: the figures are what the program was compiled for")
    if period_ms is not None:
        _stream(blob, machine, period_ms, steps, (json_path, paths.get(json_path or "")), explain)
        return
    timeline = timing.simulate(blob, machine, warm)
    if warm and not timeline.warm:
        note("note: weights do not stay in the weight buffer: every inference loads them, and --warm changes nothing")
    _one_inference(timeline, program, changed, layers, (json_path, trace_path), paths, explain)


def _check_usage(streamed: bool, period_ms: float | None, steps: int | None, single: bool) -> None:
    if streamed and period_ms is None:
        raise click.UsageError("--stream needs --period-ms: milliseconds from one call to the next")
    if not streamed and (period_ms is not None or steps is not None):
        raise click.UsageError("--period-ms and --steps belong to --stream")
    if streamed and single:
        raise click.UsageError("--warm, --layers and --trace are about one inference, not about --stream")


def _one_inference(
    timeline: Timeline,
    program: str,
    changed: Changes,
    layers: bool,
    outputs: tuple[str | None, str | None],
    paths: Mapping[str, Path],
    explain: bool,
) -> None:
    """Report one timeline: JSON and trace where wanted, and the screen unless one of them goes to stdout."""
    from nnac import report
    from nnac.report import trace
    from nnac.report.host import hosted

    (json_path, trace_path), size = outputs, Path(program).stat().st_size
    if json_path is not None:
        write_json(paths.get(json_path), report.to_json(timeline, size, changed), indent=1)
    if trace_path is not None:
        write_json(paths.get(trace_path), trace.to_trace(timeline))
    if "-" in outputs:
        return
    show(report.screen(timeline, size, program, changed), *(("", report.all_layers(timeline)) if layers else ()))
    if layers and timeline.program.segments:
        show("", hosted(timeline))
    if explain:
        click.echo(f"\n{report.contract()}")


def _stream(
    program: Program,
    machine: Target,
    period_ms: float,
    steps: int | None,
    output: tuple[str | None, Path | None],
    explain: bool,
) -> None:
    """Report calls once per period; `output` is where the JSON goes, and its path."""
    from nnac import report
    from nnac.report import streaming as report_streaming
    from nnac.streaming import STEPS, stream

    found = stream(program, period_ms, steps or STEPS, machine)
    if output[0] is not None:
        write_json(output[1], report_streaming.stream_json(found), indent=1)
    if output[0] == "-":
        return
    show(report_streaming.stream_screen(found))
    if explain:
        click.echo(f"\n{report_streaming.stream_contract()}\n\n{report.contract()}")


@click.command()
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

    from nnac import report
    from nnac.program import dumps
    from nnac.report import account

    blob = load_program(program)
    data = dumps(blob)
    if json_path is not None:
        write_json(path, account.to_json(blob, len(data)), indent=1)
    if json_path == "-":
        return
    show(
        report.header(blob, len(data), hashlib.sha256(data).hexdigest()),
        "",
        report.interface(blob),
        *(("", report.states(blob)) if blob.states else ()),
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
    from nnac.report.parts import printable

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


@click.command()
@click.argument("description")
@click.option("--frames", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="Frames to play.")
def pipeline(description: str, frames: int) -> None:
    """Play programs that share a machine, as a DESCRIPTION (.toml) joins them."""
    from nnac.pipeline import load_pipeline
    from nnac.report.streaming import pipeline_screen

    announce_kernels("codec")
    show(pipeline_screen(load_pipeline(description), frames))
