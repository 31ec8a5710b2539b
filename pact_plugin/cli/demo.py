"""`pact-plugin demo`: a real model fine-tuned plainly and with PACT, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pact_plugin.errors import PluginError


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
    try:
        from pact_demo.command import run
    except ModuleNotFoundError as error:
        problem = f"the demo needs the package {error.name}"
        raise PluginError(problem, remedy="pip install 'pact-plugin[demo]'") from error
    run(output, seed=seed, device=device, dtype=dtype, quick=quick)
