"""The house: floors, packages, names. A line that stands on the wrong floor fails here."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("nnac", "nnac.blas", "nnac.errors", "nnac.numerics", "nnac.types"),
    ("nnac.kernels", "nnac.targets", "nnac.float32"),
    ("nnac.floatmodel", "nnac.norms", "nnac.cells"),
    ("nnac.graph", "nnac.isa"),
    ("nnac.segment",),
    ("nnac.ops", "nnac.program", "nnac.stages"),
    ("nnac.frontend", "nnac.plan", "nnac.reference", "nnac.border", "nnac.hazards", "nnac.contracts", "nnac.array"),
    ("nnac.calibration", "nnac.innerstates"),
    ("nnac.weights",),
    ("nnac.validate", "nnac.emulator", "nnac.timing", "nnac.liveness", "nnac.disasm"),
    ("nnac.passes", "nnac.orders"),
    ("nnac.bounds", "nnac.session"),
    ("nnac.compare", "nnac.compiled", "nnac.search", "nnac.streaming", "nnac.pipeline"),
    ("nnac.compiler", "nnac.transducer"),
    ("nnac.sweep", "nnac.verify", "nnac.backend", "nnac.chunks"),
    ("nnac.report",),
    ("nnac.terminal",),
    ("nnac.testing", "nnac.train"),
    ("nnac.cli",),
    ("nnac.__main__",),
)
"""Lowest first; a module's floor is that of the longest prefix. Inside a package modules may use each other."""


def modules() -> dict[str, Path]:
    """Return every module of the product by dotted name (the three root folders live inside `nnac` by links)."""
    found = {}
    for folder in ("nnac", "nnac/kernels", "nnac/passes", "nnac/targets"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def unit(name: str) -> str:
    """Return the entry of FLOORS that a module belongs to."""
    entries = [entry for floor in FLOORS for entry in floor if name == entry or name.startswith(f"{entry}.")]
    specific = [entry for entry in entries if entry != "nnac"]
    return max(specific, key=len) if specific else ("nnac" if name == "nnac" else "")


def imports(path: Path, known: set[str]) -> set[str]:
    """Return the modules of the product that a file imports, `TYPE_CHECKING` and lazy ones included."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            used |= (parts & known) or {node.module}
    return {name for name in used if name in known}


def edges() -> set[tuple[str, str]]:
    """Return (importer, imported) between modules; the lazy public names of `nnac/__init__` are left out."""
    known = modules()
    return {(name, used) for name, path in known.items() if name != "nnac" for used in imports(path, set(known))}


def test_every_module_has_a_floor() -> None:
    """A new module must be entered into FLOORS."""
    assert [name for name in modules() if not unit(name)] == []


def test_imports_only_go_down() -> None:
    """A file imports from floors below, and inside its own package."""
    floor = {entry: level for level, entries in enumerate(FLOORS) for entry in entries}
    wrong = [f"{a} -> {b}" for a, b in sorted(edges()) if unit(a) != unit(b) and floor[unit(a)] <= floor[unit(b)]]
    assert wrong == []


def test_no_circles() -> None:
    """No module reaches itself through imports."""
    assert list(nx.simple_cycles(nx.DiGraph(sorted(edges())))) == []


def test_package_list_is_complete() -> None:
    """A subpackage missing from pyproject works in an editable install and is absent from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "nnac").rglob("__init__.py")}
    folders |= {f"nnac.{name}" for name in ("kernels", "passes", "targets")}
    assert set(settings["packages"]) == folders
    assert {settings["package-dir"][f"nnac.{name}"] for name in ("kernels", "passes", "targets")} == {
        "kernels",
        "passes",
        "targets",
    }


@pytest.mark.parametrize("name", ["kernels", "passes", "targets"])
def test_links_point_home(name: str) -> None:
    """Bare clones see the three root folders inside the package through relative links."""
    link = ROOT / "nnac" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_module_docstrings() -> None:
    """Every module says what it is."""
    assert [n for n, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))] == []


def test_no_pickle() -> None:
    """Nothing in the product unpickles (trust: checkpoints, npz)."""
    for name, path in modules().items():
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "shelve", "marshal", "dill"} & set(names), name
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, name
