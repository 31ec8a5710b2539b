"""What `check` and the plugin say of the release of Axolotl and of keys that are misspelt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pact_axolotl
import pytest
from check_configs import config
from pact_axolotl.check.environment import Axolotl
from pact_axolotl.hooks import register

from pact_plugin.errors import ConfigError


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
    axolotl = Axolotl("python", version, "0.1", autoloads_plugins=False, registered=True)
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
