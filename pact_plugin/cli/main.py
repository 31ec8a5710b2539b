"""`pact-plugin`: one command. Its sub-commands import what is heavy when they are called."""

from __future__ import annotations

import sys
from typing import Any

try:
    import rich  # noqa: F401
    import typer
except ModuleNotFoundError as missing:
    sys.exit(
        f"pact-plugin: {missing.name} is not installed. Install the command line: pip install 'pact-plugin[cli]'."
    )

from pact_plugin.cli import audit, card, check, demo, tokens, train, verify
from pact_plugin.cli.console import accept_every_character, print_error
from pact_plugin.errors import PactError, ReceiptError

app = typer.Typer(
    name="pact-plugin",
    no_args_is_help=True,
    add_completion=False,
    help="Keep an aligned language model's refusals while you fine-tune it (PACT, arXiv 2603.07445).",
)


app.add_typer(tokens.app, name="tokens")
app.command("audit")(audit.audit)
app.command("card")(card.card)
app.command("check")(check.check)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("verify")(verify.verify)


def main() -> Any:
    """Run the command line; errors of pact-plugin are one line in red and exit status 1."""
    accept_every_character()
    try:
        return app()
    except PactError as error:
        print_error(error, "not constrained" if isinstance(error, ReceiptError) else "error")
        sys.exit(1)


if __name__ == "__main__":
    main()
