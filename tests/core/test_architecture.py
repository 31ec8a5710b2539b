"""Rules of the house: what each package may load, import or compute."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import house
import pytest
from processes import FRAMEWORKS, loaded_by

ROOT = Path(__file__).parents[2]
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


def test_asking_for_help_and_reading_a_receipt_load_no_framework():
    """`pact-plugin verify` is over before torch would be imported."""
    commands = "import pact_plugin.cli.main"
    assert loaded_by(f"{commands}, pact_plugin.run.drift, pact_plugin.run.verify") == set()


def test_errors_name_options_on_the_command_line_alone():
    """Python that meets one has arguments; `pact_plugin.cli.flags` turns these into options."""
    for folder in (ROOT / "pact_plugin", ROOT / "integrations"):
        for path in set(folder.rglob("*.py")) - set((ROOT / "pact_plugin" / "cli").rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            keys = {one.value for one in ast.walk(tree) if isinstance(one, ast.keyword) and one.arg == "key"}
            texts = {ast.unparse(one) for one in keys}
            assert [text for text in texts if "'--" in text] == [], path


def test_the_losses_on_torch_load_no_other_framework():
    code = "import torch, pact_plugin as pact; p = torch.zeros(1, 2) - 2; pact.confidence_divergence(p, p)"
    assert loaded_by(code) == {"torch"}


# --- tools/house.py, which `make lint` runs, and whether it sees what it looks for ---


def test_no_rule_is_broken():
    assert list(house.broken()) == []


def edges_of(tmp_path, monkeypatch, **files: str) -> tuple[list[house.Module], dict[str, set[str]]]:
    """A small core of some files, dots of whose names are written as __."""
    for name, text in files.items():
        path = tmp_path / "pact_plugin" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(house, "ROOT", tmp_path)
    found = house.modules()
    return found, house.graph(found)


def test_a_circle_is_seen_through_functions_and_not_through_type_checking(tmp_path, monkeypatch):
    _, edges = edges_of(
        tmp_path,
        monkeypatch,
        terms__a="def f():\n    from pact_plugin.terms.b import g\n",
        terms__b="from pact_plugin.terms import c\n",
        terms__c="import pact_plugin.terms.a\n",
        terms__d="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pact_plugin.terms.e import x\n",
        terms__e="from pact_plugin.terms.d import y\n",
    )
    found = house.circle(edges)
    assert found[0] == found[-1]
    assert set(found) == {"terms.a", "terms.b", "terms.c"}
    del edges["terms.c"]
    assert house.circle(edges) == []


def test_imports_against_the_layers_are_seen(tmp_path, monkeypatch):
    _, edges = edges_of(
        tmp_path,
        monkeypatch,
        reference__a="from pact_plugin.terms.b import x\n",
        terms__b="from pact_plugin.audit import c\n",
        constraint="def f():\n    from pact_plugin.cli.d import x\n",
        audit__c="from pact_plugin.cli.d import y\n",
        cli__d="from pact_plugin.audit.c import z\nfrom pact_plugin.constraint import w\n",
        odd__e="from pact_plugin.constraint import v\n",
    )
    found = house.upward(edges)
    assert found[:4] == [
        "audit.c -> cli.d",
        "constraint -> cli.d",
        "odd.e -> constraint: odd is no layer",
        "reference.a -> terms.b",
    ]
    assert found[4].startswith("terms.b -> audit")


def test_frameworks_and_integrations_in_the_core_are_seen(tmp_path, monkeypatch):
    found, _ = edges_of(
        tmp_path,
        monkeypatch,
        model__a="import torch\nimport transformers.trainer\n",
        cli__b="def f():\n    from pact_axolotl.check import problems\n    import peft\n",
    )
    assert house.foreign(found) == [
        "cli.b imports pact_axolotl.check.problems",
        "cli.b imports peft",
        "model.a imports transformers.trainer",
    ]


# --- what it does not look at ---


def sources(folder: str) -> list[Path]:
    found = sorted(ROOT.glob(f"{folder}/**/*.py"))
    assert found, folder
    return found


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at any depth, also through importlib with a literal name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(house.imported(tree)) | {name.rpartition(".")[0] for name in house.imported(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) in {"import_module", "__import__"}:
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value}
    return names - {""}


def name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported(path)}


@pytest.mark.parametrize("path", sources("pact_plugin"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_core_names_no_trainer_and_no_integration_even_through_importlib(path):
    assert roots(path) & (house.TRAINERS | house.INTEGRATIONS) == set()


@pytest.mark.parametrize(
    "path",
    [*sources("pact_plugin/math"), ROOT / "pact_plugin/errors.py"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_the_mathematics_names_no_framework(path):
    assert roots(path) & (FRAMEWORKS | {"numpy"}) == set()


def test_the_published_objective_is_known_to_its_term_its_mathematics_and_the_settings_alone():
    knowing = {
        path.relative_to(ROOT / "pact_plugin").parts[0]
        for path in sources("pact_plugin")
        if "published" in path.read_text(encoding="utf-8").lower()
    }
    assert knowing == {"__init__.py", "config.py", "math", "terms"}


def mathematics(path: Path) -> Iterator[str]:
    """What a file computes: functions of probabilities and logits, however they are reached."""
    for module in sorted(imported(path)):
        computes = module == "math" or module.startswith(("torch.nn.functional", "numpy"))
        if computes or module.split(".")[-1] in MATHEMATICS:
            yield f"import {module}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name, owner = name_of(node.func), getattr(node.func, "value", None)
        of_library = isinstance(owner, ast.Name) and owner.id in LIBRARIES
        if name in MATHEMATICS or (name == "log" and of_library):  # a trainer's own `log` writes metrics
            yield f"{name} in line {node.lineno}"


ADAPTERS = sources("integrations")


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
