"""Rules of import: what each package may load or name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINERS = {"transformers", "trl", "axolotl", "peft", "accelerate", "datasets"}
FRAMEWORKS = TRAINERS | {"torch", "jax", "tensorflow", "cupy"}
MATHEMATICS = {
    "softmax",
    "log_softmax",
    "logsumexp",
    "log_sigmoid",
    "logsigmoid",
    "sigmoid",
    "cross_entropy",
    "nll_loss",
    "kl_div",
    "exp",
    "expm1",
    "log1p",
}
LIBRARIES = {"torch", "math", "np", "numpy", "F", "jnp"}


def loaded_by(code: str) -> set[str]:
    """The frameworks that a fresh interpreter has loaded after `code`."""
    ask = f"import sys; print(*sorted(set({sorted(FRAMEWORKS)!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ask}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_no_framework():
    assert loaded_by("import pact_plugin") == set()


def test_the_losses_on_numpy_load_no_framework():
    code = """
import numpy as np
import pact_plugin as pact
p = np.log(np.full((2, 3), 0.25))
assert pact.confidence_divergence(p, p).shape == (2,)
assert pact.published_divergence(p, p, p, [1.0, 0.5, -1.0], [0, 1]).shape == (2,)
assert pact.safety_direction([np.eye(3)[:2]], [np.eye(3)[2:]], top_k=3)[0].shape == (3,)
"""
    assert loaded_by(code) == set()


def test_the_specification_loads_no_framework():
    assert loaded_by("import pact_spec.__main__, pact_spec.generate, pact_spec.reference") == set()


def test_the_losses_on_torch_load_no_other_framework():
    code = "import torch, pact_plugin as pact; p = torch.zeros(1, 2) - 2; pact.confidence_divergence(p, p)"
    assert loaded_by(code) == {"torch"}


def sources(folder: str) -> list[Path]:
    found = sorted(ROOT.glob(f"{folder}/**/*.py"))
    assert found, folder
    return found


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, also through importlib with a literal name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func) in {"import_module", "__import__"}:
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value)


def name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


@pytest.mark.parametrize("path", sources("pact_plugin"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_core_names_no_trainer(path):
    assert {module.split(".")[0] for module in imported(path)} & TRAINERS == set()


@pytest.mark.parametrize(
    "module", ["math/confidence", "math/gate", "math/direction", "math/arrays", "errors"]
)
def test_the_losses_name_no_framework(module):
    path = ROOT / f"pact_plugin/{module}.py"
    assert {module.split(".")[0] for module in imported(path)} & (FRAMEWORKS | {"numpy"}) == set()


def mathematics(path: Path) -> Iterator[str]:
    """What a file computes: functions of probabilities and logits, however they are reached."""
    for module in imported(path):
        if module == "math" or module.startswith(("torch.nn.functional", "numpy")):
            yield f"import {module}"
        if module.split(".")[-1] in MATHEMATICS:
            yield f"import {module}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name, owner = name_of(node.func), getattr(node.func, "value", None)
        of_library = isinstance(owner, ast.Name) and owner.id in LIBRARIES
        if name in MATHEMATICS or (name == "log" and of_library):  # a trainer's own `log` writes metrics
            yield f"{name} in line {node.lineno}"


ADAPTERS = sources("integrations/pact_transformers") + sources("integrations/pact_trl")


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_adapters_hold_no_mathematics(path):
    assert list(mathematics(path)) == []


def test_mathematics_is_recognised(tmp_path):
    path = tmp_path / "adapter.py"
    path.write_text(
        "import math\nfrom torch.nn import functional as F\nfrom torch import softmax\n"
        "def f(self, x):\n    self.log({})\n    super().log({})\n"
        "    torch.log(x)\n    x.exp()\n    F.cross_entropy(x)\n",
        encoding="utf-8",
    )
    found = list(mathematics(path))
    assert found == [
        "import math",
        "import torch.nn.functional",
        "import torch.softmax",
        "log in line 7",
        "exp in line 8",
        "cross_entropy in line 9",
    ]
