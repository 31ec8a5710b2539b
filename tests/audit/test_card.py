"""`pact-plugin card`: the block of a model card, from a receipt and an audit."""

from __future__ import annotations

import pytest
from audits import results
from sft import TOKENS
from typer.testing import CliRunner

from pact_plugin import PactConfig
from pact_plugin.audit.card import BEGIN, END, block, read_audit, with_block, write_block
from pact_plugin.cli.main import app
from pact_plugin.errors import ConfigError, ReceiptError
from pact_plugin.run.receipt import Receipt

SUMS = {
    "eased": [2.0, 100.0],
    "anchor_divergence": [0.4, 100.0],
    "refusal_shift": [-1.0, 4.0],
    "loss": [1.0, 100.0],
}


def a_receipt(config: PactConfig | None = None, **values) -> Receipt:
    given = {
        "config": (config or PactConfig()).summary(),
        "terms": ["easing", "anchors"],
        "tokens": TOKENS.summary(),
        "reference": "table",
        "steps": [[1, 4]],
        "total_steps": 4,
        "trained_until": "2026-01-01T00:00:00+00:00",
        "trained_tokens": 1234,
        "sums": SUMS,
        "release": "9.8.7",
    }
    return Receipt(**(given | values))


def run(*arguments: object):
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["card", *map(str, arguments)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.output


@pytest.fixture
def output(tmp_path):
    a_receipt().write(tmp_path / "out")
    return tmp_path / "out"


def test_the_block_says_what_the_receipt_says():
    text = block(a_receipt())
    for said in (
        "pact-plugin](https://pypi.org/project/pact-plugin/) 9.8.7,",
        "`weight: 10.0`, `easing: {first: 16}`, `anchors: {benign_top_k: 0, per_step: 8,",
        "`hold_data: false`",
        "| aligned model | this model before its first step |",
        f"| safety tokens | 5, digest `{TOKENS.digest}`, tokenizer `{TOKENS.fingerprint[:16]}` |",
        "| optimiser steps constrained | 4 of 4 |",
        "| tokens trained on | 1,234 |",
        "easing left out | 2.00% |",
        "| drift at the anchors, nats per token | 0.004 |",
        "| shift of the log odds of refusing at harmful anchors, nats | -0.25 |",
    ):
        assert said in text
    assert "Audit" not in text
    assert "arning" not in text


def test_what_a_reader_must_know_is_said():
    text = block(a_receipt(total_steps=6, sums=SUMS | {"anchor_divergence": [50.0, 100.0]}))
    assert "| optimiser steps constrained | 4 of 6 |" in text
    assert "**Steps 5-6 were not constrained.**" in text
    assert "**Warning:** at the anchors the model has moved 0.5 nats per token" in text
    measured = block(a_receipt(PactConfig(weight=0, anchors=False), terms=["easing"]))
    assert "which measured and held nothing (`weight: 0`)" in measured
    assert "steps constrained" not in measured


def test_no_folder_of_the_one_who_trained_is_named():
    config = PactConfig(
        safety_tokens="/home/someone/tokens.safetensors",
        reference="/home/someone/aligned",
        anchors={"prompts": "/home/someone/mine.jsonl"},
        advanced={"store": "/home/someone/store"},
    )
    text = block(a_receipt(config))
    assert "/home" not in text
    assert "prompts: mine.jsonl" in text
    assert "| aligned model | `aligned` |" in text


def test_the_block_says_what_the_audit_found(lost):
    result = results(lost[0])
    text = block(a_receipt(), result)
    change = result.harmful.change
    assert "**failed**" in text
    assert "- Loss of refusals on harmful prompts: 100.0 points, at most 5.0 points: failed." in text
    assert (
        "- Rise of refusals on benign prompts: 0.0 points, at most 5.0 points: passed, not certain (" in text
    )
    assert f"| harmful | 10 | {result.harmful.reference.refused} (" in text
    assert f"| {100 * change.difference:+.1f} ({100 * change.low:+.1f} to" in text
    assert "| benign | 10 |" in text
    assert "`other` was compared with `aligned`" in text
    assert text.startswith(BEGIN)
    assert text.endswith(END + "\n")


@pytest.mark.parametrize("card", ["", "# Mine\n", "# Mine\n\ntext", "---\ntags: [a]\n---\n\n# Mine\n"])
def test_a_second_block_replaces_the_first(card):
    once = with_block(card, "".join((BEGIN, "\nold\n", END, "\n")))
    later = once + "\n## More\n"
    new = block(a_receipt())
    again = with_block(later, new)
    assert again == with_block(again, new) == later.replace(f"{BEGIN}\nold\n{END}\n", new)
    assert again.startswith(card.strip())


def test_the_command_writes_the_block_into_the_card(output, lost):
    (output / "README.md").write_text("# Mine\n", encoding="utf-8")
    assert "README.md" in run(output)
    text = (output / "README.md").read_text(encoding="utf-8")
    assert text == f"# Mine\n\n{block(a_receipt())}"
    run(output, "--audit", lost[0])
    found = block(a_receipt(), results(lost[0]))
    assert (output / "README.md").read_text(encoding="utf-8") == f"# Mine\n\n{found}"
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "pact_receipt.json"]


def test_an_audit_that_lies_beside_is_found(output, lost):
    (output / "audit.json").write_bytes((lost[0] / "audit.json").read_bytes())
    assert run(output, "--print").endswith(block(a_receipt(), results(lost[0])))
    assert not (output / "README.md").exists()


@pytest.mark.parametrize("until", ["2999-01-01T00:00:00+00:00", None], ids=["later", "unknown"])
def test_an_audit_of_an_earlier_model_is_refused(output, lost, until):
    """A new run into the folder leaves it there; a copy of the folder changes no date in a file."""
    a_receipt(trained_until=until).write(output)
    (output / "audit.json").write_bytes((lost[0] / "audit.json").read_bytes())
    for more in ([], ["--audit", lost[0]]):
        with pytest.raises(ConfigError, match="older than the run's last step, so it is of another model"):
            run(output, *more)
    assert not (output / "README.md").exists()


@pytest.mark.parametrize(("name", "warned"), [("", False), ("checkpoint-4", False), ("../other", True)])
def test_an_audit_of_another_model_is_pointed_out(output, lost, tmp_path, name, warned):
    found = results(lost[0])
    other = found.candidate.model_copy(update={"name": str(output / name)})
    (tmp_path / "audit.json").write_text(found.model_copy(update={"candidate": other}).model_dump_json())
    printed = run(output, "--audit", tmp_path / "audit.json")
    assert ("Its numbers belong here only if" in printed) == warned


@pytest.mark.parametrize("card", ["Latin-1", "folder"])
def test_a_card_that_cannot_be_read_is_left_alone(output, card):
    path = output / "README.md"
    path.mkdir() if card == "folder" else path.write_bytes(b"\xe4")
    with pytest.raises(ConfigError, match=r"card=.*README.md.*cannot be read"):
        run(output)


def test_a_card_is_written_where_there_is_none(output):
    run(output)
    assert (output / "README.md").read_text(encoding="utf-8") == block(a_receipt())


def test_only_a_block_that_is_there_is_renewed(output):
    assert write_block(output, "new", only_again=True) is None
    assert not (output / "README.md").exists()


def test_a_run_that_does_not_verify_gets_no_card(output):
    a_receipt(total_steps=9).write(output)
    with pytest.raises(ReceiptError, match="steps 5-9 of 9 were not constrained"):
        run(output)
    assert not (output / "README.md").exists()


@pytest.mark.parametrize("content", [None, "", "{}", '{"format": "pact-audit"}'])
def test_another_file_is_no_audit(tmp_path, content):
    if content is not None:
        (tmp_path / "audit.json").write_text(content)
    with pytest.raises(ConfigError, match=r"audit='.*audit\.json': not the outcome of an audit"):
        read_audit(tmp_path)
