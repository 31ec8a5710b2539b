"""What `pact-plugin audit` is given: prompts, models, a folder; refused without a model wherever that can be."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pact_plugin.cli.tokens import model_loader
from pact_plugin.errors import ConfigError

if TYPE_CHECKING:
    from pact_plugin.audit.settings import Models
    from pact_plugin.data.prompts import Kind, PromptSet


@dataclass(frozen=True)
class Named:
    """Models as the command line names them."""

    reference: str
    candidate: str | None
    adapter: str | None
    tokenizer: str | None
    device: str | None
    dtype: str


def prompt_set(given: dict[Kind | None, list[str] | None]) -> PromptSet:
    """The prompts of all files and data sets; the bundled ones where there is none.

    Args:
        given: Names by the kind that they were given as; the kind is None where a column says it.

    Raises:
        ConfigError: A file, data set or column is missing, or a row cannot be used.
    """
    from pact_plugin.data import prompt_files, prompts

    found = []
    for kind, names in given.items():
        for name in names or ():
            source, column = _column(name)
            columns = prompts.ColumnNames(column or "prompt", kind)
            if prompt_files.is_file(source):
                found.append(prompt_files.load_file(Path(source), columns))
            else:
                rows = model_loader().prompt_rows(source)
                found.append(prompts.from_rows(rows, source, "row", columns))
    return prompts.together(found) if found else prompts.for_audits()


def _column(name: str) -> tuple[str, str | None]:
    """`file.csv#question` -> the file and its column; a file that has `#` in its name is itself."""
    source, mark, column = name.rpartition("#")
    return (source, column) if mark and not Path(name).exists() else (name, None)


def models(console: Console, named: Named) -> Models:
    """What loads the models; their tokenizers and the adapter's configuration are looked at beforehand."""
    from pact_plugin.audit.describe import require_same_vocabulary
    from pact_plugin.audit.settings import Models
    from pact_plugin.tokens.safety_tokens import tokenizer_fingerprint

    loader = model_loader()
    reference, candidate, adapter = named.reference, named.candidate, named.adapter
    first = loader.tokenizer(named.tokenizer or reference)
    second: Any = first
    if adapter is not None:
        loader.check_adapter(adapter)
    if named.tokenizer is None:
        beside = None if adapter is None else loader.adapter_tokenizer(adapter)
        second = first if candidate is None else loader.tokenizer(candidate)
        second = beside or second
    require_same_vocabulary(*map(tokenizer_fingerprint, (first, second)))
    placement = {"device": named.device, "dtype": named.dtype}
    kept: list[Any] = []  # the reference's weights, where the candidate is an adapter on them

    def load_reference() -> tuple[Any, Any]:
        console.print(f"Reference: {reference}", markup=False)
        model = loader.model(reference, **placement)
        if adapter is not None:
            kept.append(model)
        return model, first

    def load_candidate() -> tuple[Any, Any]:
        if adapter is not None:
            console.print(f"Candidate: {reference} with {adapter}", markup=False)
            return loader.adapter(kept.pop(), adapter), second
        console.print(f"Candidate: {candidate}", markup=False)
        return loader.model(candidate, **placement), second

    name = candidate or f"{reference} with the adapter {adapter}"
    return Models(load_reference, load_candidate, (reference, name), adapter=adapter is not None)


def make_folder(output: Path) -> None:
    """Make the report's folder, and try a file in it.

    Raises:
        ConfigError: It cannot be made, or nothing can be written there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable_folder("cannot be made", output, error) from error
    try:
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise _unusable_folder("cannot be written to", output, error) from error


def _unusable_folder(what: str, output: Path, error: OSError) -> ConfigError:
    problem, remedy = f"{what} ({error})", "Name another folder."
    return ConfigError(problem, key="--output", value=str(output), remedy=remedy)
