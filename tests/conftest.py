"""Shared fixtures: assets, golden files, and the kernel cache that follows the kernel sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.commands import assets_of_cli as assets_of_cli
from tests.commands import here as here
from tests.commands import run as run

settings.register_profile("repeatable", derandomize=True)  # `make test`: the same samples every time


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update-golden`, which rewrites golden files instead of comparing."""
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Return the folder of real models and data, or skip."""
    folder = os.environ.get("NNAC_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("NNAC_ASSETS is not set to the folder with `models` and `data`")
    return Path(folder)
