"""The README's session prints what the README says it prints."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from nnac.cli import main; main()"]


def session(title: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a section of the README, each with the lines that it prints; "..." leaves some out."""
    section = (ROOT / "README.md").read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    found: list[tuple[str, list[str]]] = []
    for line in re.findall(r"^    (.*)$", section, re.MULTILINE):
        if line.startswith("$ nnac "):
            found.append((line.removeprefix("$ nnac "), []))
        elif line.strip() != "...":
            found[-1][1].append(line.rstrip())
    return found


def test_the_session(tmp_path: Path) -> None:
    """Every line shown is printed, in this order."""
    shutil.copytree(ROOT / "examples" / "digits", tmp_path / "digits")
    for command, shown in session("A session"):
        arguments = [*COMMAND, *shlex.split(command)]
        process = subprocess.run(arguments, cwd=tmp_path / "digits", capture_output=True, text=True, check=True)
        printed = iter([line.rstrip() for line in process.stdout.splitlines()])
        assert shown, command
        for line in shown:
            assert line in printed, f"nnac {command}: {line!r} is not printed, or not there"
