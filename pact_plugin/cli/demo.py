"""`pact-plugin demo`: a real model fine-tuned plainly and with PACT, compared."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pact_plugin.errors import PluginError

CHECKOUT = Path(__file__).parents[2]
"""The repository, where this runs from one. An installed package has no demo: its adapter alone is 5 MB."""


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for results.json, the picture, the answers and the audits."
        ),
    ] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="Of the data's sample and order, and of the new adapters.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; by default a CUDA GPU if there is one.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the frozen weights; by default bfloat16 if the device is built for it, else float32."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps and prompts: shows that it runs, not what it achieves.")
    ] = False,
) -> None:
    """Fine-tune an aligned 135M model twice, plainly and with PACT, and count what it still refuses."""
    _command().run(output, seed=seed, device=device, dtype=dtype, quick=quick)


def _command() -> Any:
    """The demo's own module, of the checkout that this command runs from."""
    if not (CHECKOUT / "examples" / "demo" / "adapter").is_dir():
        raise PluginError(
            "the demo is part of the repository, not of the installed package",
            key="demo",
            remedy="Clone the repository of pact-plugin and run `make demo` there.",
        )
    sys.path.insert(0, str(CHECKOUT))
    try:
        return importlib.import_module("examples.demo.command")
    except ModuleNotFoundError as error:
        problem = f"the demo needs the package {error.name}"
        raise PluginError(problem, remedy="pip install -e '.[demo]' in the checkout") from error
    finally:
        sys.path.remove(str(CHECKOUT))
