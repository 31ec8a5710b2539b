"""Finding adapters and sources through pluggy; nothing misspelt, doubled or broken passes."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

import pact_plugin as pact
from pact_plugin.data.facts import DataFacts
from pact_plugin.errors import AdapterError, PluginError
from pact_plugin.hooks import manager
from pact_plugin.hooks.spec import Adapter, ConfigCheck, TrainerParts, hookimpl
from pact_plugin.reference.choose import RunFacts
from pact_plugin.run.check_report import CheckReport


@contextmanager
def plugged(plugin: object, name: str = "test-plugin"):
    manager.register(plugin, name)
    try:
        yield
    finally:
        manager.plugin_manager().unregister(plugin)


class Loop:
    """A trainer of a framework that only a plugin knows."""

    folder = "beside the trainer"

    def __init__(self) -> None:
        self.model, self.tokenizer = tiny_model(), tiny_tokenizer()


def adapter(name: str) -> object:
    def parts(trainer, folder):
        run = RunFacts(folder=folder or trainer.folder)
        return TrainerParts(trainer.model, trainer.tokenizer, run, DataFacts())

    def put(trainer, constraint):
        trainer.constraint = constraint
        return trainer

    class Plugin:
        @hookimpl
        def pact_adapters(self):
            return [Adapter(name, lambda trainer: isinstance(trainer, Loop), parts, put)]

    return Plugin()


def tokens() -> pact.SafetyTokens:
    return pact.SafetyTokens.for_tokenizer(tiny_tokenizer(), [40, 41], [1.0, 0.5])


def config(**changes) -> pact.PactConfig:
    return pact.PactConfig(safety_tokens=tokens(), anchors=False, **changes)


def test_a_third_partys_adapter_is_found_and_used():
    with plugged(adapter("loop")):
        trainer = Loop()
        assert pact.attach(trainer, config()) is trainer
        assert trainer.constraint.tokens == tokens()
        assert str(trainer.constraint.reference.table.folder) == Loop.folder
        named = pact.attach(Loop(), config(advanced={"store": "elsewhere"}))
        assert str(named.constraint.reference.table.folder) == "elsewhere"


def test_a_trainer_that_none_or_two_know():
    with pytest.raises(AdapterError, match=r"Loop.*no adapter knows this trainer \(adapters: .*trl"):
        pact.attach(Loop(), config())
    with (
        plugged(adapter("one"), "one"),
        plugged(adapter("two"), "two"),
        pytest.raises(AdapterError, match="several adapters know this trainer"),
    ):
        pact.attach(Loop(), config())


def test_one_name_twice():
    with plugged(adapter("trl")), pytest.raises(PluginError, match=r"name='trl'.*one name"):
        manager.find_adapter(Loop())


def test_a_misspelt_hook():
    class Misspelt:
        @hookimpl
        def pact_adaptors(self):
            return []

    with pytest.raises(PluginError, match="pact_adaptors"):
        manager.register(Misspelt(), "misspelt")
    assert not manager.plugin_manager().has_plugin("misspelt")


def test_a_named_reference(monkeypatch):
    aligned, seen = tiny_model(seed=2), []

    class Loader:
        def reference(self, name, model, tokenizer):
            seen.append(name)
            return aligned

    monkeypatch.setattr("pact_plugin.assemble.one_offered", lambda hook, remedy: Loader())
    asked = {"easing": False, "anchors": False, "hold_data": True}
    named = pact.PactConfig(safety_tokens=tokens(), reference="a/model", **asked)
    constraint = pact.PactConstraint(tiny_model(), tiny_tokenizer(), named)
    assert seen == ["a/model"]
    assert constraint.tokens == tokens()
    assert constraint.reference.choice.name == "model"
    assert not any(p.requires_grad for p in aligned.parameters())
    (term,) = constraint.terms
    assert {one.ids for one in term.columns} == {(40, 41)}


def test_one_that_is_offered(monkeypatch):
    """By hooks of which the command line needs exactly one."""

    class Another:
        @hookimpl
        def pact_model_loaders(self):
            return [dataclasses.replace(offered, name="another")]

    offered = manager.one_offered("pact_model_loaders", remedy="Install one.")
    with plugged(Another()), pytest.raises(PluginError, match="more than one plugin offers") as caught:
        manager.one_offered("pact_model_loaders", remedy="Install one.")
    assert set(caught.value.value.split(", ")) == {offered.name, "another"}
    monkeypatch.setattr(manager, "offered", lambda hook: {})
    with pytest.raises(PluginError, match=r"no plugin offers pact_model_loaders.*Install one"):
        manager.one_offered("pact_model_loaders", remedy="Install one.")


def test_the_check_that_reads_a_configuration(tmp_path):
    def plugin(name: str, reads: Any) -> object:
        class Plugin:
            @hookimpl
            def pact_config_checks(self):
                return [ConfigCheck(name, lambda file: CheckReport(), reads)]

        return Plugin()

    mine, other = tmp_path / "mine.yml", tmp_path / "other.yml"
    with plugged(plugin("mine", lambda file: file == mine)):
        assert manager.find_config_check(mine).name == "mine"
        rest = manager.find_config_check(other)
        assert rest.reads is None
        with (
            plugged(plugin("also", lambda file: True), "second"),
            pytest.raises(PluginError, match="more than one"),
        ):
            manager.find_config_check(mine)
    with plugged(plugin("rest", None)), pytest.raises(PluginError, match=r"other\.yml.*more than one"):
        manager.find_config_check(other)


def test_a_plugin_that_fails_to_import(tmp_path, monkeypatch):
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[pact_plugin]\nbroken = broken_plugin_of_a_test\n")
    (tmp_path / "broken_plugin_of_a_test.py").write_text("raise RuntimeError('half installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    manager.plugin_manager.cache_clear()
    try:
        with pytest.raises(PluginError, match="half installed"):
            pact.attach(Loop(), config())
    finally:
        monkeypatch.undo()
        manager.plugin_manager.cache_clear()
        manager.plugin_manager()
