"""What `pact-plugin audit` is given: prompts and models; refused without a model wherever that can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_plugin.cli.console import Console
from pact_plugin.cli.flags import AUDIT, flags_in_errors
from pact_plugin.cli.inputs import model_loader

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
            source, column = prompt_files.with_column(name)
            columns = prompts.ColumnNames(column, kind)
            with flags_in_errors(AUDIT, kind):
                if prompt_files.is_file(source):
                    found.append(prompt_files.load_file(Path(source), columns))
                else:
                    rows = model_loader().prompt_rows(source)
                    found.append(prompts.from_rows(rows, source, "row", columns))
    return prompts.together(found) if found else prompts.for_audits()


def models(console: Console, named: Named) -> Models:
    """What loads the models; configurations, tokenizers and chat templates are looked at beforehand."""
    from pact_plugin.audit.describe import require_same_vocabulary
    from pact_plugin.audit.settings import Models
    from pact_plugin.data.chat_template import user_prompts
    from pact_plugin.tokens.safety_tokens import tokenizer_fingerprint

    loader = model_loader()
    reference, candidate, adapter = named.reference, named.candidate, named.adapter
    for name in filter(None, (reference, candidate)):
        loader.check_model(name)
    first = loader.tokenizer(named.tokenizer or reference)
    second: Any = first
    if adapter is not None:
        loader.check_adapter(adapter)
    if named.tokenizer is None:
        beside = None if adapter is None else loader.adapter_tokenizer(adapter)
        second = first if candidate is None else loader.tokenizer(candidate)
        second = beside or second
    require_same_vocabulary(*map(tokenizer_fingerprint, (first, second)))
    for tokenizer in (first, second):
        user_prompts(tokenizer, ["Hello."])  # a chat template may refuse it
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
