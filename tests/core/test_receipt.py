"""The receipt and `pact-plugin verify`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pact_plugin.cli.main import app
from pact_plugin.config import PactConfig
from pact_plugin.errors import ReceiptError
from pact_plugin.run.drift import LOOSE, loose_hold
from pact_plugin.run.receipt import FILE_NAME, Receipt, comparable
from pact_plugin.run.verify import verify_run


def a_receipt(**values) -> Receipt:
    config = {"objective": "confidence", "weight": 2.0}
    tokens = {"digest": "0123456789abcdef", "count": 7, "tokenizer": "f" * 64}
    return Receipt(config=config, tokens=tokens, reference="adapter_off", **values)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(0, 45))
def test_steps_and_missing_steps_partition_the_run(steps, last):
    receipt = a_receipt()
    for step in sorted(steps):
        receipt.add_step(step)
        receipt.add_step(step)
    receipt.total_steps = max(receipt.total_steps, last)
    covered = {s for first, last_ in receipt.steps for s in range(first, last_ + 1)}
    missing = {s for first, last_ in receipt.missing_steps for s in range(first, last_ + 1)}
    assert covered == set(steps)
    assert receipt.constrained_steps == len(covered)
    assert missing == set(range(1, receipt.total_steps + 1)) - covered


def test_what_is_written_is_what_is_read(tmp_path):
    receipt = a_receipt(steps=[[1, 4]], total_steps=4, positions=10, divergence=0.5)
    path = receipt.write(tmp_path / "new" / "folder")
    assert Receipt.read(path.parent) == receipt == Receipt.read(path)
    assert json.loads(path.read_text())["mean_divergence"] == 0.05
    assert [p.name for p in path.parent.iterdir()] == [FILE_NAME]


def test_verify_says_what_was_constrained(tmp_path):
    a_receipt(steps=[[1, 4]], total_steps=4, positions=10, divergence=0.5).write(tmp_path)
    line = verify_run(tmp_path)
    for words in (
        "4 steps",
        "10 response positions",
        "0.05 nats",
        "7 safety tokens (0123456789abcdef)",
        "weight 2",
    ):
        assert words in line
    assert "\n" not in line


def held(moved: float, **values) -> Receipt:
    """Of a run of 4 steps on 100 tokens, its anchors moved by so many nats a token."""
    counts = {"steps": [[1, 4]], "total_steps": 4, "positions": 10, "trained_tokens": 100}
    return a_receipt(**counts, anchor_divergence=100 * moved, **values)


def verified(folder):
    return CliRunner().invoke(app, ["verify", str(folder)])


def test_verify_says_how_far_the_anchors_moved_and_warns_of_a_loose_hold(tmp_path):
    for moved, warns in ((LOOSE / 2, False), (LOOSE, False), (2 * LOOSE, True)):
        held(moved, anchor_prompts=512).write(tmp_path)
        assert Receipt.read(tmp_path).mean_anchor_divergence == pytest.approx(moved)
        result = verified(tmp_path)
        assert result.exit_code == 0
        assert f"at the anchors {moved:.4g}" in result.stdout
        assert ("warning" in result.stderr) is warns
        assert "warning" not in result.stdout
    for words in ("0.02 nats", "Lower the learning rate", "pact-plugin audit"):
        assert words in result.stderr


@pytest.mark.parametrize("receipt", [held(1.0), a_receipt(anchor_prompts=512), held(0.0, anchor_prompts=512)])
def test_no_warning_without_anchors_or_before_anything_was_noted(receipt):
    assert loose_hold(receipt) is None
    assert receipt.mean_anchor_divergence in (None, 0.0)


def test_no_warning_of_a_run_that_only_measures():
    receipt = held(1.0, anchor_prompts=512)
    assert loose_hold(receipt)
    receipt.config["weight"] = 0.0
    assert loose_hold(receipt) is None


@pytest.mark.parametrize("field", ["anchor_divergence", "trained_tokens"])
def test_a_receipt_of_before_that_was_noted_is_read(tmp_path, field):
    path = held(1.0, anchor_prompts=512).write(tmp_path)
    content = json.loads(path.read_text())
    assert content["mean_anchor_divergence"] == 1.0
    kept = {k: v for k, v in content.items() if k not in ("anchor_divergence", "trained_tokens")}
    path.write_text(json.dumps({k: v for k, v in kept.items() if not k.startswith("mean")}))
    assert Receipt.read(path).mean_anchor_divergence is None
    assert "at the anchors" not in verify_run(tmp_path)
    path.write_text(json.dumps(content | {field: "much"}))
    with pytest.raises(ReceiptError, match="cannot be read"):
        Receipt.read(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": [[1, 2], [5, 6]], "total_steps": 8, "positions": 3}, "steps 3-4, 7-8 of 8"),
        ({"steps": [[2, 4]], "total_steps": 4, "positions": 3}, "steps 1 of 4"),
        ({"steps": [], "total_steps": 0, "positions": 0}, "no response position"),
        ({"steps": [[1, 2]], "total_steps": 2, "positions": 0}, "no response position"),
    ],
)
def test_verify_refuses_a_run_constrained_in_part(tmp_path, values, words):
    a_receipt(**values).write(tmp_path)
    with pytest.raises(ReceiptError, match=words):
        verify_run(tmp_path)


def test_verify_counts_the_steps_that_the_trainer_counted(tmp_path):
    a_receipt(steps=[[1, 2]], total_steps=2, positions=3).write(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 5}')
    with pytest.raises(ReceiptError, match="steps 3-5 of 5"):
        verify_run(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(ReceiptError, match="trainer's state"):
        verify_run(tmp_path)


def test_verify_refuses_a_run_that_was_only_measured(tmp_path):
    receipt = a_receipt(steps=[[1, 2]], total_steps=2, positions=3)
    receipt.config["weight"] = 0.0
    receipt.write(tmp_path)
    with pytest.raises(ReceiptError, match="measured, not constrained"):
        verify_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1}', "\x00\xff"])
def test_damaged_receipts(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content, encoding="latin-1")
    with pytest.raises(ReceiptError, match="cannot be read"):
        verify_run(tmp_path)


def test_no_receipt(tmp_path):
    with pytest.raises(ReceiptError, match="no receipt"):
        verify_run(tmp_path)


def test_resuming_continues_the_counts_and_refuses_other_settings():
    earlier = held(0.5, divergence=0.5, anchor_prompts=512)
    receipt = a_receipt(anchor_prompts=512)
    receipt.resume(earlier)
    assert (receipt.positions, receipt.divergence) == (10, 0.5)
    assert (receipt.trained_tokens, receipt.mean_anchor_divergence) == (100, 0.5)
    receipt.add_step(5)
    assert receipt.steps == [[1, 5]]
    assert earlier.steps == [[1, 4]]
    other = a_receipt()
    other.config["weight"] = 3.0
    with pytest.raises(ReceiptError, match=r"constrained differently: weight was 2\.0"):
        other.resume(earlier)


def test_a_receipt_of_before_anchor_tokens_means_sixteen():
    now = PactConfig(anchors=4, anchor_tokens=16).summary()
    before = {key: value for key, value in now.items() if key != "anchor_tokens"}
    assert comparable(now) == comparable(before)
    assert comparable(now | {"anchor_tokens": 4}) != comparable(before)
    without = PactConfig(anchors=0).summary()
    assert "anchor_tokens" not in comparable(without)
    assert "anchor_ratio" not in comparable(without)


def test_a_receipt_of_before_anchor_ratio_means_one_to_one():
    now = PactConfig(anchor_ratio=1).summary()
    before = {key: value for key, value in now.items() if key != "anchor_ratio"}
    assert comparable(now) == comparable(before)
    assert comparable(PactConfig(anchor_ratio=3).summary()) != comparable(before)


def test_a_receipt_of_before_first_n_was_set_means_all():
    now = PactConfig(first_n="all").summary()
    before = now | {"first_n": None}
    assert comparable(now) == comparable(before)
    assert comparable(PactConfig().summary()) != comparable(before)
    published = PactConfig(objective="published").summary()
    assert comparable(published) == comparable(published | {"first_n": None})
