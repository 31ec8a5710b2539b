"""lm-eval beside an audit: how it is called and read. A stand-in writes the files that lm-eval 0.4.13 wrote."""

from __future__ import annotations

import sys
import textwrap

import pytest
from audits import audit, results, words

from pact_plugin.audit.lm_eval import LmEval
from pact_plugin.audit.lm_eval import results as numbers
from pact_plugin.cli.audit_inputs import Named, lm_eval
from pact_plugin.errors import ConfigError, PluginError

STAND_IN = """
    import json, pathlib, sys
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    if given["--tasks"] == "unknown":
        sys.exit("Tasks were not found: unknown")
    if given["--tasks"] == "silent":
        sys.exit(0)
    acc = 0.25 if "other" in given["--model_args"] else 0.75
    folder = pathlib.Path(given["--output_path"]) / "model"
    folder.mkdir()
    row = {"alias": "sums", "acc,none": acc, "acc_stderr,none": 0.1, "f1,strict": 1, "f1_stderr,strict": "N/A"}
    args = {"alias": "args", "limit,none": float(given.get("--limit", 0)), "limit_stderr,none": "N/A"}
    (folder / "results_2026-11-27.json").write_text(json.dumps({"results": {"sums": row, "args": args}}))
    pathlib.Path(given.get("--seen", "/dev/null")).open("a").write(given["--model_args"] + "\\n")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The stand-in on the path of this process and of those that it starts."""
    package = tmp_path / "site" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "__main__.py").write_text(textwrap.dedent(STAND_IN), encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def test_both_models_are_evaluated_and_stand_side_by_side(folder, tmp_path, installed):
    options = f"--limit 7 --seen '{tmp_path}/seen'"
    done = audit(folder, tmp_path / "out", "--lm-eval", "sums,more", "--lm-eval-options", options)
    table = results(tmp_path / "out").lm_eval
    assert done.exit_code == 1, done.output
    assert table.tasks == "sums,more"
    rows = {(row.task, row.metric): row for row in table.rows}
    assert set(rows) == {("sums", "acc"), ("sums", "f1 (strict)"), ("args", "limit")}
    row = rows["sums", "acc"]
    assert (row.reference, row.reference_error, row.candidate, row.candidate_error) == (0.75, 0.1, 0.25, 0.1)
    assert rows["sums", "f1 (strict)"].reference_error is None
    assert rows["args", "limit"].reference == 7
    assert (tmp_path / "seen").read_text(encoding="utf-8").splitlines() == [
        f"pretrained={folder / name},dtype=auto" for name in ("aligned", "other")
    ]
    assert "lm-eval, sums, acc: reference 0.7500, candidate 0.2500" in words(done.output)
    assert "lm-eval: sums, acc" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "- lm-eval, sums, acc: 0.25 (reference 0.75)." in (tmp_path / "out" / "model_card.md").read_text(
        "utf-8"
    )


def test_an_adapter_is_evaluated_on_its_reference(folder, tmp_path, installed):
    arguments = ("--adapter", folder / "adapter", "--tokenizer", folder / "aligned", "--dtype", "float32")
    options = ("--lm-eval", "sums", "--lm-eval-options", f"--seen {tmp_path}/seen")
    done = audit(folder, tmp_path / "out", *arguments, *options, candidate=None)
    assert done.exit_code in {0, 1}, done.output
    common = f"pretrained={folder / 'aligned'},dtype=float32,tokenizer={folder / 'aligned'}"
    assert (tmp_path / "seen").read_text(encoding="utf-8").splitlines() == [
        common,
        f"{common},peft={folder / 'adapter'}",
    ]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("unknown", "lm-eval ended with status 1 (Tasks were not found: unknown)"),
        ("silent", "lm-eval ended with status 0 (it wrote no results)"),
    ],
)
def test_tasks_that_it_refuses_end_the_audit_before_a_model_is_loaded(
    folder, tmp_path, installed, tasks, message
):
    done = audit(folder, tmp_path / "out", "--lm-eval", tasks)
    assert done.exit_code == 2
    assert message in words(done.output)
    assert "Try it by itself: python -m lm_eval --model hf" in words(done.output)
    assert "Reference: " not in done.output


def test_options_that_are_no_words_are_refused(folder, tmp_path, installed):
    done = audit(folder, tmp_path / "out", "--lm-eval", "sums", "--lm-eval-options", "'--limit 7")
    assert done.exit_code == 2
    assert "--lm-eval-options" in done.output
    assert "Reference: " not in done.output


def test_where_it_is_not_installed_its_tasks_are_refused_before_a_model_is_loaded(
    folder, tmp_path, monkeypatch
):
    # An installed lm-eval is hidden: a module that is None in sys.modules counts as missing.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = audit(folder, tmp_path / "out", "--lm-eval", "sums")
    assert done.exit_code == 2
    assert "--lm-eval='sums': its tasks need the package lm-eval. pip install 'lm-eval[hf]'" in words(
        done.output
    )
    assert "Reference: " not in done.output
    with pytest.raises(PluginError, match="need the package lm-eval"):
        LmEval("sums", ("a", "b"))


def test_what_only_one_model_has_is_left_out():
    content = {
        "results": {"a": {"alias": "a", "acc,none": 1.0, "flag,none": True, "n": 3}, "b": {"alias": "b"}}
    }
    assert numbers(content) == {("a", "acc"): (1.0, None)}
    with pytest.raises(KeyError):
        numbers({})


def test_a_failure_is_an_error_with_its_last_line(installed):
    with pytest.raises(ConfigError, match="--lm-eval='unknown'"):
        LmEval("unknown", ("a", "b")).run(lambda text: None)


def test_a_reference_whose_name_is_part_of_an_argument(installed):
    named = Named("train", "trained-further", adapter=None, tokenizer=None, device=None, dtype="auto")
    assert lm_eval("sums", "", named).models == (
        "pretrained=train,dtype=auto",
        "pretrained=trained-further,dtype=auto",
    )
