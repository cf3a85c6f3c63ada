"""Numba loops over arrays: they know no graph, no target and no address. Each module exports kernels that write into
their outputs.

Importing this package is cheap: numba comes in with the first kernel module. A kernel has one form, which is compiled
at its first use and which numba keeps in `cache_folder()`. Its name carries a digest of all kernel sources and of
numba's version, because numba's own key covers the file of a function but not the functions that it calls: without the
digest a changed callee would leave stale machine code behind.

Kernels check no bounds and no ranges: whoever calls them has validated the program.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

compiling: Callable[[str], AbstractContextManager[object]] = nullcontext
"""Entered with the name of a kernel while it is compiled or loaded; whoever shows that puts something else here."""


def cache_folder() -> Path:
    """The folder of the compiled kernels, created if need be.

    It lies in $NUMBA_CACHE_DIR where that is set, else in $XDG_CACHE_HOME/nnac or ~/.cache/nnac, else (not writable) in
    a temporary folder that belongs to this user alone.
    """
    name = f"kernels-{_digest()}"
    home = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nnac")
    folder = Path(home).expanduser() / name
    return folder if _is_writable(folder) else _temporary_home() / name


def is_cold(module: str = "") -> bool:
    """Whether no kernel (of one module) is compiled yet, so that its first import will take seconds."""
    return next(cache_folder().rglob(f"{module}*.nbi"), None) is None


def modules() -> list[str]:
    """The names of all kernel modules."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def compile_all() -> Iterator[str]:
    """Compiles all kernels that this machine uses, or loads them; yields each module before, and "loops"."""
    jit, machine, codes = (import_module(f"nnac.kernels.{name}") for name in ("jit", "machine", "codes"))
    for name in modules():
        yield name
        import_module(f"nnac.kernels.{name}")
        _ = [each.compiled for each in jit.KERNELS]
    yield "loops"
    for function in (machine.tile, machine.own_tile, machine.finish, machine.keep, codes.narrow_tile):
        function()


@functools.cache
def _digest() -> str:
    """Twelve hexadecimal digits over all kernel sources and numba's version."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    content = [part for path in sources for part in (path.name.encode(), path.read_bytes())]
    return hashlib.sha256(b"\0".join([version("numba").encode(), *content])).hexdigest()[:12]


def _is_writable(folder: Path) -> bool:
    """Whether a file can be made in the folder, which is created on the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def _temporary_home() -> Path:
    """A private temporary folder; the same one in each process, unless somebody else was there first.

    What lies in it is unpickled and run, so nobody else may own it or write into it.
    """
    folder = Path(tempfile.gettempdir()) / f"nnac-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink()):
        return Path(tempfile.mkdtemp(prefix="nnac-"))
    return folder
