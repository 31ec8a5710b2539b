"""`pact-plugin train`: what it makes of a check, a training command and a receipt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pact_plugin as pact
from pact_plugin.cli import check, train
from pact_plugin.cli.main import app
from pact_plugin.errors import ConfigError, ReceiptError
from pact_plugin.hooks.spec import ConfigCheck, TrainCommand
from pact_plugin.run.check_report import CheckReport
from pact_plugin.run.receipt import FILE_NAME, Receipt


def receipt(folder: Path) -> Receipt:
    tokens = {"count": 3, "digest": "0123456789abcdef"}
    made = Receipt(config=pact.PactConfig().summary(), terms=["easing"], tokens=tokens, reference="table")
    made.add_step(1)
    made.trained_tokens = 10
    made.write(folder)
    return made


class Framework:
    """One whose check answers as told, and whose training writes a receipt or does not."""

    def __init__(self, folder: Path, *, good: bool = True, status: int = 0, writes: bool = True) -> None:
        self.folder, self.good, self.status, self.writes = folder, good, status, writes
        self.calls: list[Any] = []

    def run(self, config: Path, launcher: str | None, arguments: Any) -> int:
        self.calls.append((str(config), launcher, list(arguments)))
        if self.writes:
            receipt(self.folder)
        return self.status

    def check(self, config: Path) -> ConfigCheck:
        report = CheckReport()
        if not self.good:
            report.find([ConfigError("it is off", key="pact", remedy="Write `pact: true`.")])
        return ConfigCheck("mine", lambda config: report)

    def offered(self, hook: str) -> dict[str, TrainCommand]:
        assert hook == "pact_train_commands"
        return {"mine": TrainCommand("mine", lambda config: self.folder, self.run)}


@pytest.fixture
def framework(tmp_path, monkeypatch):
    def made(**how: Any) -> Framework:
        one = Framework(tmp_path / "out", **how)
        monkeypatch.setattr(train, "offered", one.offered)
        monkeypatch.setattr(check, "find_config_check", one.check)
        return one

    return made


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["train", "run.yml", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_all_went_well(framework):
    one = framework()
    result = run("--launcher", "torchrun", "--", "--nproc_per_node=2", "--standalone")
    assert result.exit_code == 0
    assert "\nconstrained: 1 steps, 10 tokens" in result.output
    assert one.calls == [("run.yml", "torchrun", ["--nproc_per_node=2", "--standalone"])]
    run()
    assert one.calls[-1] == ("run.yml", None, [])


def test_nothing_is_trained_after_a_check_that_finds_something(framework):
    one = framework(good=False)
    assert run().exit_code == 1
    assert one.calls == []


def test_a_training_that_fails(framework):
    framework(status=3)
    result = run()
    assert result.exit_code == 3
    assert "so the run was not verified" in result.output


def test_a_training_that_leaves_no_receipt(framework):
    framework(writes=False)
    with pytest.raises(ReceiptError, match="no receipt"):
        run()


def test_the_receipt_of_an_earlier_run_is_none(framework):
    one = framework(writes=False)
    receipt(one.folder)
    with pytest.raises(ReceiptError, match="an earlier run's"):
        run()
    one.writes = True
    before = os.stat(one.folder / FILE_NAME)
    assert run().exit_code == 0
    assert os.stat(one.folder / FILE_NAME).st_ino != before.st_ino
