"""No way to train unconstrained in silence: each one stops, or `check` says it before and `verify` after."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pact_axolotl
import pytest
import yaml
from axolotl_runs import LORA, Run, Workshop, environment_without_plugin, loads_installed
from pact_axolotl.check.axolotl_report import AxolotlReport
from pact_axolotl.check.check import check

from pact_plugin.run.receipt import FILE_NAME

HERE = Path(sys.executable).parent
ONE_STEP: dict[str, Any] = LORA | {"max_steps": 1, "save_steps": 1}
ONE_LINE = None if loads_installed() else ["pact_axolotl.PactPlugin"]
"""`plugins:` as short as this Axolotl allows."""


pytestmark = pytest.mark.usefixtures("own_path", "asked_by_forks")


def checked(workshop: Workshop, **changes: Any) -> AxolotlReport:
    file = workshop.folder / "checked.yml"
    file.write_text(yaml.safe_dump(workshop.config(**changes) | {"output_dir": str(workshop.folder / "out")}))
    return check(file)


def assert_not_silent(run: Run, *words: str) -> None:
    """It stops before the first step; or it trains, nothing of it looks constrained, and `verify` says so."""
    assert not list(run.output.rglob("pact_*"))
    line = run.verify()
    assert line.returncode == 1
    assert "no receipt: nothing shows that this run was constrained" in line.stderr
    if run.status:
        assert not run.checkpoints
        for word in words:
            assert word in run.log, run.log[-2000:]
    else:
        assert len(run.steps) == 1
        assert not [name for entry in run.history for name in entry if "pact" in name]


def assert_never_begins(run: Run, *words: str) -> None:
    """`pact-plugin train` ends with the check."""
    assert run.status == 1
    assert not run.output.exists()
    for word in words:
        assert word in run.log, run.log[-2000:]


def test_a_misspelt_plugin_line(workshop):
    changes = ONE_STEP | {"plugins": ["pact_plugin.axolotl.PactPlugin"]}
    (finding,) = checked(workshop, **changes).findings
    assert finding.key == "plugins"
    assert_never_begins(workshop.pact_train("line-checked", **changes), "`pact_axolotl.PactPlugin`")
    run = workshop.train("line", **changes)
    assert bool(run.status) == loads_installed()
    assert_not_silent(run, "pact_plugin.axolotl")


@pytest.mark.parametrize("plugins", [ONE_LINE, ["pact_axolotl.PactPlugin"]], ids=["shortest", "listed"])
@pytest.mark.parametrize("missing", ["hooks.py", "settings.py"])
def test_a_broken_import(workshop, tmp_path, missing, plugins):
    """Importing the plugin needs the standard library alone, so that a module that is missing stops a hook."""
    broken = tmp_path / "pact_axolotl"
    shutil.copytree(Path(pact_axolotl.__file__).parent, broken)
    (broken / missing).unlink()
    config = workshop.config(**ONE_STEP | {"plugins": plugins})
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    name = f"broken-{missing}-{plugins is None}"
    run = workshop.axolotl("train", name, config, "--launcher", "python", PYTHONPATH=paths)
    assert run.status != 0
    assert_not_silent(run, f"No module named 'pact_axolotl.{missing.removesuffix('.py')}'")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"pact": None, "pcat": True}, "pcat"),
        ({"pact": None, "weight": 2.0}, "weight"),
        ({"pact": None, "wandb": {"pact": True}}, "wandb.pact"),
    ],
    ids=["misspelt", "outside-of-its-block", "below-another"],
)
def test_a_key_at_the_wrong_level_or_misspelt(workshop, changes, key):
    changes = ONE_STEP | changes
    assert [finding.key for finding in checked(workshop, **changes).findings if finding.key == key]
    run = workshop.train(f"key-{key}", **changes)
    assert run.status != 0
    assert_not_silent(run, "pact_plugin.errors.ConfigError", key)


def test_axolotls_command_and_launcher_bypassed(workshop):
    """The training module by itself, as users of clusters start it."""
    words = [sys.executable, "-m", "axolotl.cli.train"]
    config = workshop.config(**ONE_STEP, plugins=ONE_LINE) if ONE_LINE else workshop.config(**ONE_STEP)
    run = workshop.on_configuration(words, "bypassed", config).ok()
    assert "constrained: 1 steps" in run.verify().stdout


def test_a_launcher_of_an_environment_without_the_package(workshop, tmp_path, monkeypatch):
    folder = environment_without_plugin(tmp_path / "environment")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    launcher = folder / "accelerate"
    launcher.write_text(f"#!{folder}/python\n")
    launcher.chmod(0o755)
    own = tmp_path / "bin"
    own.mkdir()
    (own / "axolotl").symlink_to(HERE / "axolotl")
    monkeypatch.setenv("PATH", os.pathsep.join([str(own), str(folder), os.environ["PATH"]]))
    (finding,) = checked(workshop, **ONE_STEP).findings
    assert (finding.key, finding.value) == ("accelerate", str(launcher))
    assert "has no pact-plugin" in finding.problem
    assert f"Put {HERE} first on PATH" in finding.remedy


@pytest.mark.parametrize("plugins", [None, ["pact_axolotl.PactPlugin"]], ids=["one-line", "two-lines"])
def test_an_environment_without_the_package(workshop, tmp_path, monkeypatch, plugins):
    folder = environment_without_plugin(tmp_path / "environment")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    own = os.environ.get("PYTHONPATH")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    changes = ONE_STEP | {"plugins": plugins}
    findings = {finding.key: finding for finding in checked(workshop, **changes).findings}
    assert set(findings) == {"pact-plugin"} | (set() if plugins or loads_installed() else {"plugins"})
    stops = loads_installed() and plugins is not None
    assert ("would stop" if stops else "train on, unconstrained") in findings["pact-plugin"].problem
    assert f"{folder}/python" in findings["pact-plugin"].remedy
    assert "pip install 'pact-plugin[axolotl]'" in findings["pact-plugin"].remedy

    name = f"without-{plugins is None}"
    if own is None:  # else this test's own package would be found there
        checking = workshop.pact_train(f"{name}-checked", environment={"PATH": path}, **changes)
        assert_never_begins(checking, "has no pact-plugin")
    run = workshop.axolotl("train", name, workshop.config(**changes), "--launcher", "python", PATH=path)
    assert bool(run.status) == stops
    assert_not_silent(run, "pact_axolotl")


# --- `pact-plugin train` ---


def test_one_command_checks_trains_and_verifies(workshop):
    run = workshop.pact_train(
        "one", "--launcher", "torchrun", "--", "--nproc_per_node=1", "--standalone", **ONE_STEP
    )
    assert run.ok().receipt["steps"] == [[1, 1]]
    assert "this run will be constrained" in " ".join(run.log.split())
    assert run.log.rstrip().splitlines()[-1].startswith("constrained: 1 steps")


def test_what_overrides_the_file_is_not_taken(workshop):
    run = workshop.pact_train("overridden", "--learning-rate", "1", **ONE_STEP)
    assert run.status == 2
    assert "No such option" in run.log
    assert not run.output.exists()


def test_a_training_that_fails_gives_its_status(workshop):
    run = workshop.pact_train(
        "fails", **ONE_STEP | {"datasets": [{"path": "/nowhere", "type": "chat_template"}]}
    )
    assert run.status != 0
    assert "so the run was not verified" in run.log
    assert not (run.output / FILE_NAME).exists()
