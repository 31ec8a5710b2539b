"""An implementation against the vectors of the specification."""

from __future__ import annotations

from pact_spec.conformance import run
from pact_spec.vectors import FUNCTIONS
from strategies import using

import pact_plugin

PACT = {name: getattr(pact_plugin, name) for name in FUNCTIONS}


def failures(implementation, kind=("numpy", "float64")) -> list[str]:
    with using(kind) as backend:
        return [
            f"{outcome.case.function}/{outcome.case.name}: {outcome.problem}"
            for outcome in run(implementation, backend, kind[1])
            if outcome.status == "FAIL"
        ]
