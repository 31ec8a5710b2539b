"""Check an implementation of PACT: `python -m pact_spec path.to.module`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections import Counter

from pact_spec.backends import backend
from pact_spec.conformance import TOLERANCES, run


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each case and a summary; 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m pact_spec",
        description="Run PACT's conformance vectors against an implementation.",
    )
    parser.add_argument("module", help="importable module that has the three functions")
    parser.add_argument("--backend", choices=["numpy", "torch", "jax"], default="numpy")
    parser.add_argument("--dtype", choices=sorted(TOLERANCES), default="float64")
    parser.add_argument("--device", default="cpu", help="PyTorch's device (default: cpu)")
    options = parser.parse_args(arguments)
    sys.path.insert(0, "")
    if options.backend == "jax" and options.dtype == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"  # read when JAX is imported
    implementation = importlib.import_module(options.module)
    counts: Counter[str] = Counter()
    for outcome in run(
        implementation, backend(options.backend, options.dtype, options.device), options.dtype
    ):
        counts[outcome.status] += 1
        case = outcome.case
        line = f"{outcome.status:4}  {case.clause:5}  {case.function}/{case.name}"
        print(line + (f": {outcome.problem}" if outcome.problem else ""))
    print(f"{options.module}, {options.backend} {options.dtype}: ", end="")
    print(f"{counts['ok']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
