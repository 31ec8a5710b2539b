"""`python -m benchmarks.judge`: fits the judge's weights, and measures it on models that it has not seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.judge.data import TEXTS, Row, read_own, read_pyrit, read_xstest
from benchmarks.judge.evaluation import evaluate, table
from benchmarks.judge.fitting import fit
from pact_plugin.cli.console import print_error
from pact_plugin.errors import ConfigError, PactError
from pact_plugin.judge.classifier import WEIGHTS

console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The judge's weights, and how good they are."
)
XSTest = Annotated[
    Path | None,
    typer.Option("--xstest", help="XSTest's labelled answers: model, answer, label on each line."),
]
PyRIT = Annotated[Path | None, typer.Option("--pyrit", help="PyRIT's: answer, label on each line.")]
Own = Annotated[Path, typer.Option("--own", help="Texts of one's own: text, label, voice on each line.")]


@app.command()
def train(
    xstest: XSTest = None,
    pyrit: PyRIT = None,
    own: Own = TEXTS,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of weights.")] = WEIGHTS,
) -> None:
    """Fit the weights on all labelled answers. The same answers give the same file."""
    rows = _rows(xstest, pyrit, own)
    weights = fit(rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(weights, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    used = sum(row.learnt for row in rows)
    size = output.stat().st_size / 1000
    console.print(f"{used} answers, {len(weights['refuses']['weights'])} weights, {size:.0f} kB: {output}")


@app.command("evaluate")
def evaluate_judges(
    xstest: XSTest = None,
    pyrit: PyRIT = None,
    own: Own = TEXTS,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the table here.")] = None,
) -> None:
    """Recall and false alarms of each judge, on each model with weights that were fitted without it."""
    results = evaluate(_rows(xstest, pyrit, own))
    written = table(results)
    console.print(written, end="", markup=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(written, encoding="utf-8")


def _rows(xstest: Path | None, pyrit: Path | None, own: Path) -> list[Row]:
    rows = read_own(own)
    rows += read_xstest(xstest) if xstest else []
    rows += read_pyrit(pyrit) if pyrit else []
    if {row.label for row in rows if row.learnt} != {"refused", "partial", "complied"}:
        remedy = "Add answers of the others, such as --xstest."
        raise ConfigError(
            "the answers do not have all three labels", key="own", value=str(own), remedy=remedy
        )
    return rows


def main() -> None:
    """The command line; errors of pact-plugin are one line in red."""
    try:
        app()
    except PactError as error:
        print_error(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
