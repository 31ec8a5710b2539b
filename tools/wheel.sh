#!/usr/bin/env bash
# Build the wheel, install it with nothing but its hard dependencies, and import it: tools/wheel.sh PYTHON BUILD_PYTHON
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$2" -m build --quiet --wheel --outdir "$work" .
"$1" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile "$work"/*.whl
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import importlib.util
import pkgutil

import pact_plugin
import pact_spec.reference  # noqa: F401

for name in pact_plugin.__all__:
    getattr(pact_plugin, name)
for module in pkgutil.walk_packages(pact_plugin.__path__, "pact_plugin."):
    if not module.name.startswith("pact_plugin.cli"):
        importlib.import_module(module.name)
from pact_plugin.data.prompts import KINDS, bundled

assert min(len(bundled().texts(kind)) for kind in KINDS) >= 200
assert importlib.util.find_spec("transformers") is None, "transformers must not be a hard dependency"
print(f"the wheel imports: pact-plugin {pact_plugin.__version__}")
PYTHON
