"""Where the tests that run Axolotl's commands work."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from axolotl_runs import Workshop, ask_by_forks


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("axolotl"))


@pytest.fixture
def own_path(monkeypatch) -> None:
    """The commands of this interpreter come first, and Accelerate leaves GPUs alone."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture
def asked_by_forks(monkeypatch) -> None:
    """A check need not wait for an import of Axolotl."""
    monkeypatch.setattr("pact_axolotl.check.environment._run", ask_by_forks)
