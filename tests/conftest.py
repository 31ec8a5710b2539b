"""Which tests this environment can run; the others are not collected rather than skipped."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before torch: several threads in each of several processes, on the same cores, are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Answers of aligned models are kept in a folder of this run, which its workers share."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="pact-cache-")
        config.add_cleanup(folder.cleanup)
        os.environ["PACT_CACHE"] = folder.name


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_computed_twice():
    from remembered import remember  # imports transformers, which Unsloth wants to be imported before

    remember()


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_not_collected():
    """A trainer collects garbage when training begins and ends: a third of its tests' time with all that it imports."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _compiled_models_are_compiled():
    """Dynamo stops compiling a function that was compiled often, without a word, and a test of it would pass."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


collect_ignore = []
if not torch.cuda.is_available():
    collect_ignore.append("core/test_cuda.py")
if "axolotl" not in packages_distributions():  # `make test-axolotl` has an environment of its own
    collect_ignore += [str(path) for path in HERE.glob("axolotl/test_axolotl*.py")]
if "swift" not in packages_distributions():  # `make test-swift`, likewise
    collect_ignore += [str(path) for path in HERE.glob("swift/test_swift*.py")]
if "llamafactory" not in packages_distributions():  # `make test-llamafactory`
    collect_ignore += [str(path) for path in HERE.glob("llamafactory/test_llamafactory*.py")]
if "unsloth" not in packages_distributions():  # `make test-unsloth`
    collect_ignore += [str(path) for path in HERE.glob("unsloth/test_unsloth*.py")]
if find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("reproducible", deadline=None, derandomize=True)
    settings.load_profile("reproducible")
