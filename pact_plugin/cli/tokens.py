"""`pact-plugin tokens`: choose safety tokens, and look at them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pact_plugin.cli.console import Console, progress_bars
from pact_plugin.cli.flags import SELECT, flags_in_errors
from pact_plugin.cli.folders import make_folder
from pact_plugin.cli.inputs import model_loader
from pact_plugin.tokens.file import FILE_NAME, target_file

if TYPE_CHECKING:
    from pact_plugin.data.generation import Progress
    from pact_plugin.data.prompts import Kind
    from pact_plugin.tokens.safety_tokens import SafetyTokens
    from pact_plugin.tokens.select import Selection

_OTHER_ANSWERS = 32
"""Tokens of an answer to other prompts than the pool's."""
app = typer.Typer(help="Choose safety tokens, and look at them.", no_args_is_help=True)

_Prompts = Annotated[
    str | None,
    typer.Option(
        help="Your own prompts: .txt (one a line), or .jsonl or .csv with `prompt`; `FILE#column` names another column."
    ),
]


@app.command()
@flags_in_errors(SELECT)
def select(
    model: Annotated[str, typer.Argument(help="The aligned model: a directory, a hub id or a .gguf file.")],
    contrast: Annotated[
        str,
        typer.Option(help="`benign`: the model's own helpful answers. `base`: the model before alignment."),
    ] = "benign",
    base_model: Annotated[str | None, typer.Option(help="The model before alignment, for `base`.")] = None,
    top_k: Annotated[int, typer.Option(help="How many tokens to keep.")] = 50,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .safetensors file or a directory.")
    ] = Path(FILE_NAME),
    harmful: _Prompts = None,
    benign: _Prompts = None,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Where answers are cut off, in tokens; 24, and 32 with other prompts.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; by default an accelerator.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Such as bfloat16; by default as stored.")] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Most prompts of each kind, spread over the whole set.")
    ] = None,
) -> None:
    """Choose the safety tokens of an aligned model, and save them.

    By default the model answers the bundled pool, and the answers are kept: a run of this model need not ask again.
    """
    from pact_plugin.cli.tokens_view import table
    from pact_plugin.tokens.checks import check_settings
    from pact_plugin.tokens.select import Selection, select_safety_tokens

    # Everything that can be refused without the model is refused before it is loaded.
    length = _OTHER_ANSWERS if max_new_tokens is None else max_new_tokens
    pooled = contrast == "benign" and (harmful, benign, limit, max_new_tokens) == (None,) * 4
    how = Selection(
        contrast=cast(Any, contrast),
        harmful=_prompts("harmful", harmful, limit),
        benign=None if contrast == "base" and benign is None else _prompts("benign", benign, limit),
        top_k=top_k,
        max_new_tokens=length,
        batch_size=batch_size,
    )
    check_settings(how, base_model)
    make_folder(target_file(output).parent)
    console = Console()
    loading = model_loader()
    with console.status(f"Loading {model}"):
        tokenizer = loading.tokenizer(model)
        aligned = loading.model(model, dtype=dtype, device=device)
        base = base_model and loading.model(base_model, dtype=dtype, device=device)
    with warnings.catch_warnings(record=True) as caught, progress_bars(console) as progress:
        if pooled:
            chosen = _from_pool(aligned, tokenizer, how, progress)
        else:
            chosen = select_safety_tokens(aligned, tokenizer, how, base_model=base, progress=progress)
    for warning in caught:
        console.print(str(warning.message), style="yellow", markup=False)
    console.print(_why(chosen), markup=False)
    saved = chosen.save(output)
    console.print(table(chosen.positive, tokenizer))
    console.print(f"{saved}: {len(chosen)} tokens, digest {chosen.digest}", markup=False)
    console.print(f"In the configuration:  safety_tokens: {saved}", markup=False)


@app.command()
def show(
    file: Annotated[str, typer.Argument(help="A token file, a directory that holds one, or a hub id.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="A model whose tokenizer the tokens must belong to; spells them out.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the tokens whose weight is not positive.")
    ] = False,
) -> None:
    """Show a file of safety tokens as a table."""
    from pact_plugin.cli.tokens_view import table
    from pact_plugin.tokens.safety_tokens import SafetyTokens

    tokens = SafetyTokens.load(file)
    owner: Any = None
    if tokenizer is not None:
        owner = model_loader().tokenizer(tokenizer)
        tokens.check(owner)
    shown = tokens if everything else tokens.positive
    console = Console()
    console.print(table(shown, owner))
    console.print(_summary(tokens, shown), markup=False)


def _from_pool(model: Any, tokenizer: Any, how: Selection, progress: Progress) -> SafetyTokens:
    """As a run chooses them that names none: from the bundled pool, whose answers are kept."""
    from pact_plugin.data.generation import Generation, reporting
    from pact_plugin.data.prompts import for_pool
    from pact_plugin.judge.text import JUDGED_TOKENS
    from pact_plugin.reference.pool_file import pool_of
    from pact_plugin.reference.pool_tokens import tokens_of
    from pact_plugin.reference.source import build_source

    source, prompts = build_source("itself", model), for_pool().prompts
    report = reporting(progress, len(prompts), "Answering the pool")
    pool = pool_of(source, tokenizer, prompts, Generation(JUDGED_TOKENS, how.batch_size, report))
    return tokens_of(pool, source, tokenizer, how.top_k)


def _why(tokens: SafetyTokens) -> str:
    """How they were chosen, in two sentences."""
    from pact_plugin.tokens.beginnings import FIRST_TOKEN_MASS

    facts = tokens.provenance
    of = {key: f" of {facts[key]}" if key in facts else "" for key in ("harmful_prompts", "benign_prompts")}
    helped = f", helps with {facts['helped']}{of['benign_prompts']} benign ones" if "helped" in facts else ""
    mass = float(facts[FIRST_TOKEN_MASS])
    return (
        f"The model refuses {facts['refused']}{of['harmful_prompts']} harmful prompts{helped}. "
        f"The safety tokens have {mass:.0%} of the probability at the first word of its refusals."
    )


def _summary(tokens: SafetyTokens, shown: SafetyTokens) -> str:
    hidden = len(tokens) - len(shown)
    counts = f"{len(tokens)} tokens" + (
        f", {hidden} of them without a positive weight (see --all)" if hidden else ""
    )
    facts = {"digest": tokens.digest, "tokenizer": tokens.fingerprint[:16], **tokens.provenance}
    return "\n".join([counts, *(f"  {key}: {value}" for key, value in facts.items())])


def _prompts(kind: Kind, given: str | None, limit: int | None) -> tuple[str, ...]:
    """Those of a file, or those of the pool; at most `limit`."""
    from pact_plugin.data.prompt_files import load_file, with_column
    from pact_plugin.data.prompts import ColumnNames, for_pool

    with flags_in_errors(SELECT, kind):
        if given is None:
            return for_pool().limited(limit).texts(kind)
        file, column = with_column(given)
        return load_file(Path(file), ColumnNames(column, kind)).limited(limit).texts(kind)
