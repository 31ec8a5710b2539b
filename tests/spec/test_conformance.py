"""The runner of the vectors: what passes, and its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pact_spec
from conforming import PACT, failures
from pact_spec import reference
from pact_spec.backends import JaxBackend
from pact_spec.conformance import run
from pact_spec.vectors import load
from strategies import UNCOMPILED, on, using

import pact_plugin

ROOT = Path(__file__).parents[2]


def test_the_reference_passes():
    assert failures(reference) == []


@on(UNCOMPILED)
def test_pact_plugin_passes(kind):
    assert failures(pact_plugin, kind) == []


def test_pact_plugin_passes_under_jax_jit():
    """One compilation for cases of like shapes and options, where JAX would compile each operation for each shape."""
    with using(("jax", "float64")):
        backend = Jitted("float64")
        names = ("confidence_divergence", "published_divergence")
        divergences = {name: backend.jitted(PACT[name]) for name in names}
        outcomes = list(run(SimpleNamespace(**PACT | divergences), backend, "float64"))
    assert {outcome.status for outcome in outcomes} == {"ok"}, outcomes


class Jitted(JaxBackend):
    """Computes the gradients with the values, which are asked for first."""

    def gradients(self, function, arrays):
        return [self.numpy(self.found[id(array)]) for array in arrays]

    def jitted(self, function):
        """With arrays compiled; but weights that are to be refused are constants, as others are not looked at."""

        def both(logits, others, options):
            values = function(**logits, **others, **dict(options))
            return values.sum(), values

        compiled = jax.jit(jax.grad(both, has_aux=True), static_argnums=2)

        def call(**arguments):
            arrays = {name: value for name, value in arguments.items() if isinstance(value, jax.Array)}
            options = {name: value for name, value in arguments.items() if name not in arrays}
            weights = arrays.get("weights", jnp.ones(1))
            if not (jnp.isfinite(weights).all() and (weights > 0).any()):
                options["weights"] = tuple(arrays.pop("weights").tolist())
            kept = {name for name in arrays if name == "weights" or arrays[name].dtype.kind != "f"}
            logits = {name: value for name, value in arrays.items() if name not in kept}
            gradients, values = compiled(
                logits, {name: arrays[name] for name in kept}, tuple(options.items())
            )
            self.found = {id(logits[name]): gradient for name, gradient in gradients.items()}
            return values

        return call


def test_only_narrow_types_skip_cases():
    with using(("numpy", "float64")) as backend:
        assert {outcome.status for outcome in run(reference, backend, "float64")} == {"ok"}
    with using(("numpy", "float32")) as backend:
        skipped = [outcome for outcome in run(pact_plugin, backend, "float32") if outcome.status == "skip"]
    assert all(outcome.case.float64_only for outcome in skipped)
    assert 0 < len(skipped) < 20


# --- the command line ---


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pact_spec", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_command_line_passes_pact_plugin():
    done = command("pact_plugin")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, summary = done.stdout.splitlines()
    assert summary == f"pact_plugin, numpy float64: {len(load())} passed, 0 failed, 0 skipped"
    assert len(lines) == len(load())
    assert "ok    C2.1   confidence_divergence/remainder-given" in lines


def test_command_line_fails_a_mutated_copy(tmp_path):
    source = Path(pact_spec.reference.__file__).read_text(encoding="utf-8")
    mutated = source.replace("result[i] = temperature**2 *", "result[i] = temperature *")
    assert mutated != source
    (tmp_path / "mutated.py").write_text(mutated, encoding="utf-8")
    done = command("mutated", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL  C3.4   published_divergence/defaults: value is off by" in done.stdout
    assert "FAIL  C2" not in done.stdout
