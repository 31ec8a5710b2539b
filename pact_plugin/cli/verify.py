"""`pact-plugin verify`: was a run constrained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pact_plugin.cli.console import Console, print_warning


def verify(
    output: Annotated[Path, typer.Argument(help="Output or checkpoint directory of a training run.")],
) -> None:
    """Say whether a run was constrained; exit status 1 when it was not, in whole or in part.

    If it was, but its model has still moved far from the aligned one, a warning says so.
    """
    from pact_plugin.run.drift import drift_warning
    from pact_plugin.run.receipt import Receipt
    from pact_plugin.run.verify import verify_run

    Console(highlight=False, soft_wrap=True).print(verify_run(output), markup=False)
    if (drifted := drift_warning(Receipt.read(output))) is not None:
        print_warning(drifted)
