"""What `check` and the plugin say of the device, of the release of Axolotl, and of keys that are misspelt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pact_axolotl
import pytest
from check_configs import config
from pact_axolotl.check.devices import flex_attention_problems
from pact_axolotl.check.environment import Axolotl
from pact_axolotl.check.memory import Device
from pact_axolotl.hooks import register

from pact_plugin.errors import AdapterError, ConfigError


@pytest.mark.parametrize(
    "asked", [{"attn_implementation": "flex_attention"}, {"flex_attention": True}], ids=str
)
def test_flex_attention_trains_on_no_cpu(asked):
    (problem,) = flex_attention_problems(config(**asked), Device("CPU", 0))
    assert problem.key == next(iter(asked))
    assert "attn_implementation: sdpa" in problem.remedy
    assert not list(flex_attention_problems(config(**asked), Device("NVIDIA H100", 0)))
    assert not list(flex_attention_problems(config(), Device("CPU", 0)))


def test_data_for_flex_attention_can_be_prepared_on_a_cpu(monkeypatch):
    monkeypatch.setattr("pact_axolotl.check.memory.device", lambda: Device("CPU", 0))
    flex = config(pact=True, attn_implementation="flex_attention")
    pact_axolotl.PactPlugin().load_datasets(flex, preprocess=True)
    with pytest.raises(AdapterError, match="flex attention on a CPU"):
        pact_axolotl.PactPlugin().load_datasets(flex, preprocess=False)


@pytest.mark.parametrize(
    ("version", "before"),
    [
        ("0.19.0", True),
        ("0.20.1", True),
        ("0.21.0", False),
        ("0.22.0.dev0", False),
        ("1.0", False),
        ("?", False),
    ],
)
def test_releases_before_0_21(version, before):
    axolotl = Axolotl("python", version, "0.1", loads_installed=False, registered=True)
    assert axolotl.is_before_0_21 is before
    assert axolotl.needs_line


def test_the_plugin_needs_the_standard_library_alone():
    """So that Axolotl, which trains on without a plugin that it cannot import, always has it."""
    folder = Path(pact_axolotl.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import pact_axolotl; pact_axolotl.PactPlugin()"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"pcat": True}, "pcat"),
        ({"PACT": {"weight": 1}}, "PACT"),
        ({"path": "./here"}, None),  # of somebody else's plugin
        ({"weight": 2.0}, None),
        ({"pact": True, "path": "./here"}, "path"),
        ({"pact": False, "weight": 2.0}, "weight"),
        ({"hub": {"pact": True}}, "hub.pact"),
    ],
    ids=str,
)
def test_what_the_plugin_takes_for_a_misspelling_where_it_is_installed(changes, key):
    configuration = config(plugins=None, **({"pact": None} | changes))
    if key is None:
        register(configuration)
        return
    with pytest.raises(ConfigError) as raised:
        register(configuration)
    assert raised.value.key == key
