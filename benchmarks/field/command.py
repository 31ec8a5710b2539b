"""`python -m benchmarks field`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.field import report
from benchmarks.field.data import Data
from benchmarks.field.methods import METHODS, Method, all_names, method_of
from benchmarks.field.methods.pact import configured
from benchmarks.field.run import Bench, run
from benchmarks.field.settings import PRECISIONS, RATES, SPLITS, TASKS, WORDINGS, Cell, Sizes, Split, Train
from benchmarks.field.start import load
from pact_plugin import PactConfig
from pact_plugin.errors import ConfigError

console = Console(highlight=False)
FOLDER = Path("benchmark-output/field")


def field(
    model: Annotated[str, typer.Option(help="Path or hub id of the model that came aligned.")] = "",
    data_folder: Annotated[
        Path | None, typer.Option(help="Holds alpaca.jsonl, advbench.jsonl and the others.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE.jsonl, in place of the folder's; repeatable.")
    ] = None,
    task: Annotated[str, typer.Option(help=" or ".join(TASKS))] = "alpaca",
    contamination: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of harmful items.")] = 0.1,
    wording: Annotated[str, typer.Option(help=f"Of their answers: {', '.join(WORDINGS)}.")] = "target",
    method: Annotated[
        list[str] | None,
        typer.Option(help="METHOD or METHOD+TREATMENT, repeatable; or all. See benchmarks/field/README.md."),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="Of methods that have one, instead of the usual; repeatable.")
    ] = None,
    pact: Annotated[
        str | None, typer.Option(help="A PactConfig as JSON: one more method, under --name.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the method of --pact.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeatable; by default 0.")] = None,
    split: Annotated[
        str, typer.Option(help="Half of what is asked: development or held-out.")
    ] = "development",
    items: Annotated[int, typer.Option(min=1, help="Training items, harmful ones among them.")] = 220,
    epochs: Annotated[int, typer.Option(min=1, help="Over them.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Items a step.")] = 8,
    train: Annotated[str, typer.Option(help="lora, or full: every weight.")] = "lora",
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="At its highest; by default 5e-4 with LoRA, else 3e-5.")
    ] = None,
    ask: Annotated[int, typer.Option(min=1, help="Prompts of each set that are asked, at most.")] = 100,
    exact: Annotated[int, typer.Option(min=0, help="GSM8K problems to solve; 0: none.")] = 100,
    per_step: Annotated[
        int, typer.Option(min=2, help="Prompts of the pool in each step, half of them harmful.")
    ] = Sizes.per_step,
    pool_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of their answers that baselines replay.")
    ] = 16,
    tokens: Annotated[
        Path | None, typer.Option(help="Safety tokens; by default chosen once and kept in the output.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="bfloat16; or float32, which processors without bfloat16 are faster with.")
    ] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 1,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; write the report.")
    ] = False,
    judge_again: Annotated[
        bool, typer.Option("--judge-again", help="In the report, by this version's judge.")
    ] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Run nothing; compare two methods, METHOD or METHOD@STRENGTH, prompt by prompt."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = FOLDER,
) -> None:
    """What is left of refusals after fine-tuning on others' data. Goes on where an interrupted call stopped."""
    half = one_of(SPLITS, split, "split")
    if compare is not None:
        console.print(report.comparison(output, half, *compare, judge_again=judge_again), soft_wrap=True)
        return
    if report_only:
        _report(output, half, judge_again)
        return
    if not model:
        raise ConfigError("no model", key="model", remedy="Give --model PATH_OR_HUB_ID.")
    if (pact is None) != (name is None):
        raise ConfigError("--pact and --name go together", key="pact", value=pact, remedy="Give both.")
    trained: Train = one_of(tuple(RATES), train, "train")
    sizes = Sizes(
        model=model,
        items=items,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=RATES[trained] if learning_rate is None else learning_rate,
        ask=ask,
        exact=exact,
        per_step=per_step,
        pool_tokens=pool_tokens,
        dtype=one_of(PRECISIONS, dtype, "dtype"),
        train=trained,
    )
    others = {} if pact is None or name is None else {name: settings_by_name(name, pact)}
    names = list(dict.fromkeys([*(method or []), *others]))
    base = Cell(one_of(TASKS, task, "task"), contamination, one_of(WORDINGS, wording, "wording"))
    cells = cells_of(base, names, others, strength or [], seed or [0])
    torch.set_num_threads(threads)
    quiet()
    bench = Bench(load(sizes, output, tokens), sources(data_folder, data), half, others, console.print)
    if left := run(bench, cells):
        console.print(f"Other processes are at {', '.join(one.name for one in left)}: no report yet.")
        return
    _report(output, half, judge_again)


def _report(output: Path, split: Split, judge_again: bool) -> None:
    path = report.write(output, split, judge_again=judge_again)
    console.print(path.read_text(encoding="utf-8"), soft_wrap=True)
    console.print(f"{output}/: {path.name}, {path.with_suffix('.json').name}, and a plot for each data set")


def cells_of(
    base: Cell,
    names: Sequence[str],
    others: Mapping[str, Method],
    strengths: Sequence[float],
    seeds: Sequence[int],
) -> list[Cell]:
    """The cells of a call: every method at every strength that it may have, one seed after the other.

    Args:
        base: Task, contamination and wording.
        names: Of methods; `all` stands for those of the package.
        others: Methods beside those.
        strengths: In place of the methods' usual ones.
        seeds: Of the runs.

    Raises:
        ConfigError: There is no such method.
    """
    found = []
    known = [name for one in names for name in (all_names() if one == "all" else [one])]
    for seed in seeds:
        for name in dict.fromkeys(known):
            usual = method_of(name, others).strength
            for strength in [None] if usual is None else strengths or [usual]:
                found.append(replace(base, method=name, strength=strength, seed=seed))
    return found


def settings_by_name(name: str, text: str) -> Method:
    """pact-plugin with settings from the command line."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"no JSON ({error})", key="pact", value=text, remedy="Give a mapping.") from error
    PactConfig.of(config)
    if name in METHODS or name == "all" or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        remedy = "Take another one of letters, digits, `.`, `_` and `-`."
        raise ConfigError("the name is taken, or no name of a file", key="name", value=name, remedy=remedy)
    usual = {"weight": PactConfig().weight}
    return configured(name, usual if config is True else usual | config)


def sources(folder: Path | None, given: Sequence[str] | None) -> Data:
    """Where the data lies."""
    named = dict(one.partition("=")[::2] for one in given or [])
    return Data(folder, {name: Path(path) for name, path in named.items()})


def one_of(known: tuple[Any, ...], value: str, key: str) -> Any:
    """A value that is known.

    Raises:
        ConfigError: It is not.
    """
    if value not in known:
        raise ConfigError("unknown", key=key, value=value, remedy=f"There are: {', '.join(known)}.")
    return value


def quiet() -> None:
    """Without the bars and warnings of transformers."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
