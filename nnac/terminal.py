"""The terminal: streams, errors with their exit codes, progress, and the values that options take.

Results go to stdout; progress, notes and errors to stderr. Nothing heavy is imported before it is needed, so that
`nnac --help` is instant.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nnac.errors import NnacError, ProgramError, TargetError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

Advance = Callable[[str, int, int | None], None]
Shape = tuple[int, ...]

INTERRUPTED = 130
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


# -- errors --------------------------------------------------------------------------------------------------------


class Commands(click.Group):
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
            fail(error)


def fail(error: BaseException) -> NoReturn:
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
    from nnac.report.parts import printable

    if isinstance(error, NnacError):
        return "\n".join(map(printable, str(error).split("\n")))
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        where = f"{str(error.filename)!r}: " if error.filename else ""
        return printable(f"{where}{error.strerror}")
    what = printable(f"{type(error).__name__}: {error}")
    return f"this is a fault of nnac, please report it ({what}); NNAC_DEBUG=1 shows the traceback"


# -- words ---------------------------------------------------------------------------------------------------------


def show(*parts: RenderableType) -> None:
    """Print renderables to stdout: coloured and as wide as a terminal, or plain and 80 columns wide in a pipe."""
    from shutil import get_terminal_size

    from nnac.report.parts import text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    click.echo(text(*parts, width=get_terminal_size().columns if terminal else None), nl=False)


def note(text: str) -> None:
    """Print one line of advice to stderr."""
    click.echo(f"nnac: {text}", err=True)


def announce_kernels(module: str) -> None:
    """Say why the first use of a kernel module on a machine takes longer: "codec" packs weights, "conv" emulates.

    A command says it once; on a terminal a bar shows which one is being compiled.
    """
    from nnac import kernels

    context = click.get_current_context()
    if "nnac.kernels" not in context.meta and kernels.is_cold(module):
        context.meta["nnac.kernels"] = True
        note(f"compiling kernels for this machine (first use, cached in {kernels.cache_folder()})")
        if _sees_bars():
            context.call_on_close(partial(setattr, kernels, "compiling", kernels.compiling))
            kernels.compiling = _compiling


def _sees_bars() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


_bars: list[Progress] = []
"""What shows progress now: one for all, since a terminal has one last line."""


@contextmanager
def _bar() -> Iterator[Progress]:
    """Give what shows progress, for as long as somebody needs it."""
    if _bars:
        yield _bars[0]
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        _bars.append(bar)
        try:
            yield bar
        finally:
            _bars.remove(bar)


@contextmanager
def _compiling(kernel: str) -> Iterator[None]:
    """Show a bar, whose end nobody knows, while a kernel is compiled."""
    with _bar() as bar:
        task = bar.add_task(f"compiling {kernel.strip('_')}", total=None)
        try:
            yield
        finally:
            bar.remove_task(task)


@contextmanager
def progress_bar() -> Iterator[Advance | None]:
    """Give a callback that moves a progress bar, where there is a terminal to see it."""
    if not _sees_bars():
        yield None
        return
    with _bar() as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield advance


# -- values --------------------------------------------------------------------------------------------------------


def amount(value: str) -> int:
    """Return a whole number, with K or M for 1024 or 1024 squared."""
    found = re.fullmatch(r"([0-9]{1,18})([KM]?)", value.upper())
    if found is None:
        raise click.BadParameter(f"{value!r} is not a whole number, or one with K or M (such as 512K)")
    return int(found[1]) * UNITS[found[2]]


def named_shape(value: str) -> tuple[str, Shape]:
    """Return an input's name and its full shape: name=1,3,224,224."""
    name, _, sides = value.rpartition("=")
    if not name or not re.fullmatch(r"[1-9][0-9]{0,17}(,[1-9][0-9]{0,17})*", sides):
        raise click.BadParameter(f"{value!r} is not a name and its shape (such as image=1,3,224,224)")
    return name, tuple(map(int, sides.split(",")))


def named_place(value: str) -> tuple[str, tuple[int | None, ...]]:
    """Return an input's name and its shape with one open side, written k: frames=k,1,192."""
    name, _, sides = value.rpartition("=")
    if not name or not re.fullmatch(r"(k|[1-9][0-9]{0,17})(,(k|[1-9][0-9]{0,17}))*", sides) or sides.count("k") != 1:
        raise click.BadParameter(f"{value!r} is not a name and a shape with a k for the frames (frames=k,1,192)")
    return name, tuple(None if side == "k" else int(side) for side in sides.split(","))


def sizes(value: str) -> tuple[int, ...]:
    """Return positive numbers: 1,2,4."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", value):
        raise click.BadParameter(f"{value!r} is no list of positive numbers (such as 1,2,4)")
    return tuple(map(int, value.split(",")))


def named_tensors(value: str) -> str | tuple[str, ...]:
    """Return int8, int16 or auto as they are, else the names of a comma list, or of the lines of @FILE."""
    if value in ("int8", "int16", "auto"):
        return value
    try:
        names = Path(value[1:]).read_text("utf-8").splitlines() if value.startswith("@") else value.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value[1:]!r} cannot be read: {error}") from None
    found = tuple(name.strip() for name in names if name.strip())
    if not found:
        raise click.BadParameter(f"{value!r} names no tensor; allowed: int8, int16, auto, a comma list of names, @FILE")
    return found


def named_operators(value: str) -> str | tuple[str, ...]:
    """Return allow or forbid as they are, else the names of a comma list."""
    return value if value in ("allow", "forbid") else tuple(name for name in value.split(",") if name)


def named_number(value: str) -> tuple[str, float]:
    """Return an input's name and its value: sr=16000."""
    name, _, number = value.rpartition("=")
    try:
        return name, int(number) if re.fullmatch(r"-?[0-9]{1,18}", number) else float(number)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a name and its value (such as sr=16000)") from None


def named_state(value: str) -> tuple[str, str] | None:
    """Return a state's input and the output that becomes it, h_in=h_out; None for `none`."""
    name, _, result = value.partition("=")
    if value != "none" and not (name and result):
        raise click.BadParameter(f"{value!r} is not an input and an output (such as h_in=h_out), nor `none`")
    return None if value == "none" else (name, result)


def changes(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return figures of a machine by dotted name: memory.dram.bytes_per_cycle=2.

    Raises:
        TargetError: a text is no setting, or a figure is named twice.
    """
    from nnac.targets import parse_setting

    return _once([parse_setting(text) for text in texts])


def variations(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return lists of values by dotted name: mac.rows=16,32,64.

    Raises:
        TargetError: a text is no setting, a value is missing, or a figure is named twice.
    """
    from nnac.targets import parse_value

    found = []
    for text in texts:
        name, sign, values = text.partition("=")
        parts = [part.strip() for part in values.split(",")]
        if not (sign and name.strip() and all(parts)):
            raise TargetError(f"--vary {text!r}: expected name=value,value, e.g. mac.rows=16,32,64")
        found.append((name.strip(), [parse_value(part) for part in parts]))
    return _once(found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TargetError(f"setting {twice!r} is given more than once")
    return dict(pairs)


def writable(name: str, *sources: str) -> Path:
    """Return the path of an output before anything is computed.

    Raises:
        ProgramError: it cannot be written, is no regular file, or is one of the files that are read.
    """
    path = Path(name)
    problems = [
        (not path.parent.is_dir(), "its folder does not exist"),
        (path.exists() and not path.is_file(), "it is not a regular file"),
        (path.parent.is_dir() and not os.access(path.parent, os.W_OK), "its folder is not writable"),
        (any(_same(path, Path(source)) for source in sources), "it is read by the same command"),
    ]
    for found, reason in problems:
        if found:
            raise ProgramError(f"{name!r} cannot be written: {reason}")
    return path


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
