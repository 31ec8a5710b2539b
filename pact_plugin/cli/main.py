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
from pact_plugin.cli.console import print_error
from pact_plugin.errors import PactError, ReceiptError
from pact_plugin.hooks.manager import offered
from pact_plugin.hooks.spec import Command

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


def add_offered(app: typer.Typer) -> None:
    """Add the sub-commands that integrations offer.

    Raises:
        PluginError: A plugin fails to import, or two offer one name.
    """

    def added(command: Command) -> None:
        handed_over = {"allow_extra_args": True, "ignore_unknown_options": True}

        @app.command(command.name, help=command.help, context_settings=handed_over)
        def run(context: typer.Context) -> None:
            if status := command.run(context.args):
                raise typer.Exit(status)

    for command in offered("pact_commands").values():
        added(command)


def _is_ours(words: list[str]) -> bool:
    own = {one.name for one in app.registered_commands} | {one.name for one in app.registered_groups}
    return bool(words) and words[0] in own


def main() -> Any:
    """Run the command line; errors of pact-plugin are one line in red and exit status 1."""
    try:
        if not _is_ours(sys.argv[1:2]):  # ours do not depend on every plugin that is installed
            add_offered(app)
        return app()
    except PactError as error:
        print_error(error, "not constrained" if isinstance(error, ReceiptError) else "error")
        sys.exit(1)


if __name__ == "__main__":
    main()
