"""`pact-plugin card`: what a model card should say of a constrained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pact_plugin.cli.console import Console, print_warning


def card(
    output: Annotated[Path, typer.Argument(help="Output or checkpoint directory of a training run.")],
    audit: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `pact-plugin audit`; by default its audit.json in the directory, if there is one."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the block, and write nothing.")] = False,
) -> None:
    """Put a block on PACT into the README.md of a run; a second call replaces it.

    Exit status 1 if `pact-plugin verify` would fail, or if the audit is older than the run's last step.
    """
    from pact_plugin.audit.card import AUDIT, block, is_of, read_audit, write_block
    from pact_plugin.errors import ConfigError
    from pact_plugin.run.receipt import Receipt
    from pact_plugin.run.verify import verify_run

    verify_run(output)
    beside = output / AUDIT if (output / AUDIT).is_file() else None
    named = audit or beside
    receipt, found = Receipt.read(output), None if named is None else read_audit(named)
    if found is not None and not is_of(found, receipt):
        raise ConfigError(
            "this audit is older than the run's last step, so it is of another model",
            key="audit",
            value=str(named),
            remedy=f"Audit {output}, or remove {named} if it lies there by chance.",
        )
    text = block(receipt, found)
    console = Console(highlight=False, soft_wrap=True)
    if found is not None and str(output.resolve()) not in _places(found.candidate.name):
        name = found.candidate.name
        print_warning(f"the audit's candidate is {name}. Its numbers belong here only if that is {output}.")
    if show:
        console.print(text, markup=False, end="")
    else:
        console.print(f"{write_block(output, text)}: the block on PACT", markup=False)


def _places(name: str) -> set[str]:
    """Where the candidate of an audit may lie: what it was called by, and the folders above."""
    path = Path(name.rpartition(" with the adapter ")[2]).resolve()
    return {str(one) for one in (path, *path.parents)}
