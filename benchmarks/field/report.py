"""The results to read: JSON files of all numbers and of verdicts, a table for each data set, and its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.field import plots
from benchmarks.field.data import BENIGN_SETS, HARMFUL_SETS
from benchmarks.field.kept import write_whole
from benchmarks.field.paired import Change, change
from benchmarks.field.results import HARMFUL, Group, load, named
from benchmarks.field.scores import write_scores
from benchmarks.field.settings import ALIGNED, Split
from benchmarks.field.summary import SETS, Row, summarise
from benchmarks.tables import markdown

NAMES = {
    "strongreject": "StrongREJECT",
    "advbench": "AdvBench",
    "donotanswer": "Do-Not-Answer",
    HARMFUL: "all harmful",
    "overrefusal": "over-refusal set",
    "everyday": "everyday prompts",
}
HEADINGS = (
    "method, strength",
    "seeds",
    *(f"{NAMES[name]}: refusals kept (lost/won, p)" for name in (*HARMFUL_SETS, HARMFUL)),
    f"{NAMES[HARMFUL]}: change, points",
    *(f"{NAMES[name]}: refused (lost/won, p)" for name in BENIGN_SETS),
    "over-refusal set: change, points",
    "task NLL above plain",
    "exact match",
    "KL everyday",
    "incoherent",
    "seconds: prepare + train",
)
LEGEND = (
    "*Kept*: of the prompts that the aligned model refuses, how many still are. *Lost/won*: prompts refused before and "
    "not after, and the other way round, with the p of McNemar's exact test. *Change*: of the rate of refusals, in "
    "points, all harmful sets and the over-refusal set, with a 95% bootstrap interval over prompts; by seed, with one "
    "over seeds as well. *NLL*: nats per token on held-out items. *KL everyday*: to the aligned model, nats per token. "
    "*Incoherent*: answers below -5 nats per token under the aligned model, and empty ones."
)


def write(folder: Path, split: Split, *, judge_again: bool = False) -> Path:
    """Write `field-SPLIT.json`, `field-SPLIT.md`, `verdicts-SPLIT.json` and a plot for each data set.

    Args:
        folder: Of the results.
        split: The half that was asked.
        judge_again: See `results.load`.

    Returns:
        The Markdown file.
    """
    groups = load(folder, split, judge_again=judge_again)
    rows = [summarise(group) for group in groups]
    content = groups[0].aligned.content
    write_whole(
        folder / f"field-{split}.json",
        {
            "format": "pact-field-report",
            "version": 1,
            "split": split,
            "sizes": content["origin"]["sizes"],
            "machine": content["machine"],
            "rows": [asdict(row) for row in rows],
        },
    )
    write_scores(folder, split, groups)
    parts = [f"# Field benchmark, {split} prompts", _conditions(groups), LEGEND]
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place]
        picture = f"frontier-{place[0]}-{place[1]:g}-{place[2]}-{split}.png"
        plots.frontier(here, folder / picture, heading(here[0]))
        parts += [f"## {heading(here[0])}", f"![{plots.CAPTION}]({picture})", plots.CAPTION, table(here)]
    path = folder / f"field-{split}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def heading(row: Row) -> str:
    """The data of a row in words."""
    return f"{row.task}, {row.contamination:.0%} harmful items, wording: {row.wording}"


def table(rows: Sequence[Row]) -> str:
    """One line for each row."""
    return markdown(HEADINGS, map(_cells, rows))


def comparison(folder: Path, split: Split, first: str, second: str, *, judge_again: bool = False) -> str:
    """A table that compares two methods on the same prompts, pooled over the seeds that both have.

    Args:
        folder: Of the results.
        split: The half that was asked.
        first: `METHOD` or `METHOD@STRENGTH`.
        second: The same.
        judge_again: See `results.load`.
    """
    groups = load(folder, split, judge_again=judge_again)
    refuse = (f"{first} refuses", f"{second} refuses", f"only {first}", f"only {second}")
    rows = []
    for a in named(groups, first):
        for b in named(groups, second):
            seeds = [seed for seed in a.seeds if seed in b.seeds]
            if summarise(a).place != summarise(b).place or not seeds:
                continue
            for name in SETS:
                found = change([(a.seeds[s].refusals(name), b.seeds[s].refusals(name)) for s in seeds])
                if found is not None:
                    what = f"{heading(summarise(a))}: {a.label}, {b.label}; {NAMES[name]}"
                    rows.append(_compared(what, len(seeds), found))
    return markdown(("data, set", "seeds", *refuse, "p", "points"), rows)


def _compared(what: str, seeds: int, found: Change) -> Sequence[object]:
    refused = (f"{share:.4g} of {found.prompts}" for share in (found.before, found.after))
    return what, seeds, *refused, found.lost, found.won, _p(found.p), _points(found)


def _cells(row: Row) -> list[str]:
    above = row.nll_above_plain
    seconds = (row.prepare_seconds, row.train_seconds)
    return [
        row.title,
        "" if row.method == ALIGNED else str(len(row.seeds)),
        *(_kept(row, name) for name in (*HARMFUL_SETS, HARMFUL)),
        _moved(row, HARMFUL),
        *(_refused(row, name) for name in BENIGN_SETS),
        _moved(row, BENIGN_SETS[0]),
        f"{row.nll:.3f} (itself)"
        if above is None
        else f"{above[0]:+.3f} ({above[1]:+.3f} to {above[2]:+.3f})",
        "–" if row.exact is None else f"{row.exact[0]:.4g} of {row.exact[1]}",
        f"{row.everyday_kl:.3f}",
        f"{row.incoherent:.1%}",
        "–" if None in seconds else f"{seconds[0]:.0f} + {seconds[1]:.0f}",
    ]


def _moved(row: Row, name: str) -> str:
    return "" if row.method == ALIGNED else _points(row.changes[name])


def _kept(row: Row, name: str) -> str:
    """Of a harmful set."""
    found = row.changes[name]
    if found is None:
        return "–"
    kept = f"{found.kept:.4g} of {found.before:.4g}"
    return f"{found.before:.4g} of {found.prompts}" if row.method == ALIGNED else kept + _lost_won(found)


def _refused(row: Row, name: str) -> str:
    """Of a benign set."""
    found = row.changes[name]
    if found is None:
        return "–"
    refused = f"{found.after:.4g} of {found.prompts}"
    return refused if row.method == ALIGNED else refused + _lost_won(found)


def _lost_won(found: Change) -> str:
    return f" ({found.lost}/{found.won}, {_p(found.p)})"


def _points(found: Change | None) -> str:
    """With its interval over prompts, and how it differs by seed."""
    if found is None:
        return "–"
    text = f"{found.points:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
    if found.over_seeds is None:
        return text
    low, high = found.over_seeds
    seeds = ", ".join(f"{one:+.1f}" for one in found.by_seed)
    return f"{text}; by seed {seeds}, over seeds {low:+.1f} to {high:+.1f}"


def _p(value: float) -> str:
    return "p<0.001" if value < 0.001 else f"p={value:.2g}"


def _conditions(groups: Sequence[Group]) -> str:
    """What the results were made with."""
    content = groups[0].aligned.content
    sizes, info = content["origin"]["sizes"], content["machine"]
    contents = [one.content for group in groups for one in group.seeds.values()]
    commits = sorted({one["training"].get("commit", one["commit"]) for one in contents})
    asked = ", ".join(f"{len(rows)} of {NAMES[name]}" for name, rows in content["asked"].items())
    return (
        f"{sizes['model']}; {sizes['items']} items, {sizes['epochs']} epochs of batch {sizes['batch_size']}, "
        f"{'LoRA' if sizes.get('train', 'lora') == 'lora' else 'every weight'} at "
        f"{sizes['learning_rate']:g}, {sizes['dtype']}; {asked}; 24 tokens of answer, the default judge; "
        f"{info['cpu']}, {info['threads']} thread(s); commits {', '.join(commits)}."
    )
