"""The receipt and `pact-plugin verify`."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import FEW_ANCHORS, TOKENIZER, TOKENS, a_batch, adapted, loss_of, trained
from loop import settings as loop_settings
from tiny import QUESTIONS, REQUESTS
from typer.testing import CliRunner

from pact_plugin import PactConstraint
from pact_plugin.cli.main import app
from pact_plugin.config import PactConfig
from pact_plugin.errors import ReceiptError
from pact_plugin.run.drift import FAR, FAR_WORDED, drift_warning
from pact_plugin.run.meter import Sums
from pact_plugin.run.receipt import FILE_NAME, Receipt
from pact_plugin.run.verify import verify_run

ONE_TO_FOUR = {"steps": [[1, 4]], "total_steps": 4, "trained_tokens": 100, "positions": 10}


def a_receipt(config: PactConfig | None = None, **values) -> Receipt:
    given = {
        "config": (config or PactConfig(safety_tokens="t", weight=2)).summary(),
        "terms": ["easing", "anchors"],
        "tokens": {"digest": "0123456789abcdef", "count": 7, "tokenizer": "f" * 64},
        "reference": "table",
        "table": "abc",
    }
    return Receipt(**(given | values))


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
    receipt = a_receipt(**ONE_TO_FOUR, sums={"eased": [0.5, 10]})
    path = receipt.write(tmp_path / "new" / "folder")
    assert Receipt.read(path.parent) == receipt == Receipt.read(path)
    assert [p.name for p in path.parent.iterdir()] == [FILE_NAME]


def test_whoever_may_read_the_folders_files_may_read_the_receipt(tmp_path):
    (tmp_path / "other").touch()
    receipt = a_receipt().write(tmp_path)
    assert receipt.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert set(tmp_path.iterdir()) == {receipt, tmp_path / "other"}


def test_the_receipt_says_until_when_it_was_trained():
    receipt, began = a_receipt(), datetime.now(timezone.utc).replace(microsecond=0)
    assert receipt.trained_until is None
    receipt.add_step(1)
    assert began <= datetime.fromisoformat(receipt.trained_until) <= datetime.now(timezone.utc)
    resumed = a_receipt()
    resumed.resume(receipt)
    assert resumed.trained_until == receipt.trained_until


def test_sums_add_up_over_a_run():
    receipt = a_receipt()
    assert receipt.mean("eased") is None
    for eased in (0.25, 0.5):
        receipt.add(Sums(tokens=20.0, positions=4.0, means={"eased": (eased, 3.0), "loss": (0.0, 0.0)}))
    assert (receipt.trained_tokens, receipt.positions) == (40, 8)
    assert receipt.sums == {"eased": [0.75, 6.0], "loss": [0.0, 0.0]}
    assert receipt.mean("eased") == 0.125
    assert receipt.mean("loss") is None


def verified(folder):
    return CliRunner().invoke(app, ["verify", str(folder)])


def test_verify_says_what_was_constrained(tmp_path):
    sums = {"eased": [0.5, 10], "anchor_divergence": [0.25, 100], "loss": [0.5, 100], "divergence": [0, 0]}
    a_receipt(**ONE_TO_FOUR, sums=sums).write(tmp_path)
    result = verified(tmp_path)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    for words in (
        "4 steps",
        "100 tokens",
        "eased 0.05",
        "anchor_divergence 0.0025",
        "easing and anchors",
        "7 safety tokens (0123456789abcdef)",
        "weight 2",
        "reference table",
    ):
        assert words in result.stdout
    assert "loss" not in result.stdout
    assert ", divergence" not in result.stdout  # of which nothing was measured


def at_the_anchors(nats: float, **anchors: int) -> Receipt:
    """Of a run whose model has moved there by so many nats per token."""
    config = PactConfig(safety_tokens="t", anchors=anchors or True)
    return a_receipt(config, **ONE_TO_FOUR, sums={"anchor_divergence": [100 * nats, 100]})


@pytest.mark.parametrize(("anchors", "far"), [({}, FAR), ({"benign_top_k": 64}, FAR_WORDED)])
def test_verify_warns_of_a_model_that_has_moved_far(tmp_path, anchors, far):
    for moved, warns in ((far / 2, False), (far, False), (2 * far, True)):
        at_the_anchors(moved, **anchors).write(tmp_path)
        result = verified(tmp_path)
        assert result.exit_code == 0
        assert f"anchor_divergence {moved:.4g}" in result.stdout
        assert ("warning" in result.stderr) is warns
        assert "warning" not in result.stdout
    for words in (f"{2 * far:g} nats", "may have changed", "pact-plugin audit"):
        assert words in result.stderr


def test_no_warning_without_anchors_or_before_anything_was_noted():
    unseen = {"anchor_divergence": [0.0, 0.0]}
    for receipt in (a_receipt(**ONE_TO_FOUR), a_receipt(sums=unseen), at_the_anchors(0.0)):
        assert drift_warning(receipt) is None
    assert drift_warning(at_the_anchors(1.0))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": [[1, 2], [5, 6]], "total_steps": 8, "trained_tokens": 3}, "steps 3-4, 7-8 of 8"),
        ({"steps": [[2, 4]], "total_steps": 4, "trained_tokens": 3}, "steps 1 of 4"),
        ({"steps": [], "total_steps": 0, "trained_tokens": 0}, "no token was trained on"),
        ({"steps": [[1, 2]], "total_steps": 2, "trained_tokens": 0}, "no token was trained on"),
    ],
)
def test_verify_refuses_a_run_constrained_in_part(tmp_path, values, words):
    a_receipt(**values).write(tmp_path)
    with pytest.raises(ReceiptError, match=words):
        verify_run(tmp_path)


def test_verify_counts_the_steps_that_the_trainer_counted(tmp_path):
    a_receipt(steps=[[1, 2]], total_steps=2, trained_tokens=3).write(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 5}')
    with pytest.raises(ReceiptError, match="steps 3-5 of 5"):
        verify_run(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(ReceiptError, match="trainer's state"):
        verify_run(tmp_path)


@pytest.mark.parametrize(
    ("logged", "plain"),
    [
        ([True, True], False),
        ([False, True], False),
        ([True, False], False),  # no answer in the last rows
        ([True, False, False], True),
        ([False], True),
        ([], False),  # logs nothing
    ],
)
def test_verify_reads_the_trainers_logs(tmp_path, logged, plain):
    a_receipt(steps=[[1, 2]], total_steps=2, trained_tokens=3).write(tmp_path)
    logs = [{"loss": 2.0} | ({"pact/loss": 0.1} if measured else {}) for measured in logged]
    logs += [{"eval_loss": 2.0}, {"train_loss": 2.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": logs}))
    if plain:
        with pytest.raises(
            ReceiptError, match=r"earlier run's: the last logs in .*trainer_state\.json hold no"
        ):
            verify_run(tmp_path)
    else:
        assert "2 steps" in verify_run(tmp_path)


@pytest.mark.parametrize("left", ["trainer_state.json", "checkpoint-4"])
def test_verify_names_what_an_earlier_run_may_have_left(tmp_path, left):
    a_receipt(steps=[[1, 2]], total_steps=2, trained_tokens=3).write(tmp_path)
    state = tmp_path / left / "trainer_state.json" if "checkpoint" in left else tmp_path / left
    state.parent.mkdir(exist_ok=True)
    state.write_text('{"global_step": 4}')
    with pytest.raises(ReceiptError, match=rf"steps 3-4 of 4.*remove .*/{left}, if an earlier run left it"):
        verify_run(tmp_path)


def test_a_loop_that_leaves_steps_out_and_one_that_counts_batches_as_steps(tmp_path):
    model = adapted()
    constraint = PactConstraint(model, TOKENIZER, loop_settings())
    for _ in range(3):
        loss_of(constraint, model, a_batch())
    with pytest.raises(ReceiptError, match="has counted 3 steps"):
        constraint.record.write(tmp_path, total_steps=2)
    constraint.record.write(tmp_path, total_steps=3)
    assert "3 steps" in verify_run(tmp_path)
    constraint.record.write(tmp_path, total_steps=5)
    with pytest.raises(ReceiptError, match="steps 4-5 of 5 were not constrained"):
        verify_run(tmp_path)


def test_a_loop_that_goes_on(tmp_path):
    model = adapted()
    first = PactConstraint(model, TOKENIZER, loop_settings())
    loss_of(first, model, a_batch())
    first.record.write(tmp_path)
    second = PactConstraint(model, TOKENIZER, loop_settings())
    second.record.resume(tmp_path)
    loss_of(second, model, a_batch())
    second.record.write(tmp_path, total_steps=2)
    assert "2 steps" in verify_run(tmp_path)
    with pytest.raises(ReceiptError, match=r"easing\.first"):
        PactConstraint(model, TOKENIZER, loop_settings(easing={"first": 4})).record.resume(tmp_path)


def test_verify_refuses_a_run_that_was_only_measured(tmp_path):
    a_receipt(PactConfig(weight=0), **ONE_TO_FOUR).write(tmp_path)
    with pytest.raises(ReceiptError, match="measured, not constrained"):
        verify_run(tmp_path)


def test_a_run_constrained_by_its_penalties_alone_says_so(tmp_path):
    """Anchors look at no position of the data."""
    receipt = a_receipt(PactConfig(easing=False), **ONE_TO_FOUR | {"positions": 0}, terms=["anchors"])
    receipt.write(tmp_path)
    assert ", anchors, 7 safety tokens" in verify_run(tmp_path)


DAMAGED = [
    {"version": 0},
    {"steps": [[4, 1]]},
    {"steps": [[1, 2.5]]},
    {"total_steps": -1},
    {"trained_tokens": "many"},
    {"positions": True},
    {"sums": {"eased": 0.5}},
    {"sums": {"eased": [0.5, "ten"]}},
    {"terms": "anchors"},
    {"config": []},
    {"colour": 1},
]


@pytest.mark.parametrize("change", DAMAGED, ids=str)
def test_damaged_fields(tmp_path, change):
    path = a_receipt(**ONE_TO_FOUR).write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ReceiptError, match="cannot be read"):
        Receipt.read(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1}', "\x00\xff"])
def test_damaged_receipts(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content, encoding="latin-1")
    with pytest.raises(ReceiptError, match="cannot be read"):
        verify_run(tmp_path)


def test_no_receipt(tmp_path):
    with pytest.raises(ReceiptError, match="no receipt"):
        verify_run(tmp_path)


# --- going on where another run stopped ---


def test_resuming_continues_the_counts():
    earlier = a_receipt(**ONE_TO_FOUR, sums={"eased": [0.5, 10]})
    receipt = a_receipt()
    receipt.resume(earlier)
    assert receipt == earlier
    receipt.add_step(5)
    receipt.add(Sums(tokens=1, positions=1, means={"eased": (0.5, 10)}))
    assert (receipt.steps, earlier.steps) == ([[1, 5]], [[1, 4]])
    assert (receipt.sums, earlier.sums) == ({"eased": [1.0, 20.0]}, {"eased": [0.5, 10]})


def test_a_checkpoints_weights_are_not_the_aligned_model(tmp_path):
    """Loaded before the constraint is built, they would be what the run is held to."""
    config = loop_settings(easing=False, anchors=FEW_ANCHORS)
    model = adapted()
    first = PactConstraint(model, TOKENIZER, config)
    loss_of(first, model, a_batch())
    first.record.write(tmp_path)
    PactConstraint(adapted(), TOKENIZER, config).record.resume(tmp_path)
    words = r"another aligned model.*before the checkpoint's weights are loaded"
    with pytest.raises(ReceiptError, match=words):
        PactConstraint(trained(), TOKENIZER, config).record.resume(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_prompts_of_anchors_are_compared_and_not_their_path(tmp_path, same):
    """A project may have moved; the file may hold others now."""
    model = adapted()
    rows = [
        json.dumps({"prompt": text, "kind": kind})
        for kind, texts in (("harmful", REQUESTS), ("benign", QUESTIONS))
        for text in texts
    ]
    for name, some in (("a", rows), ("b", rows if same else rows[1:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some), encoding="utf-8")

    def built(name: str) -> PactConstraint:
        anchors = {"per_step": 2, "prompts": str(tmp_path / f"{name}.jsonl")}
        return PactConstraint(model, TOKENIZER, loop_settings(easing=False, anchors=anchors))

    built("a").record.write(tmp_path)
    if same:
        built("b").record.resume(tmp_path)
        return
    with pytest.raises(ReceiptError, match="constrained differently: anchors was"):
        built("b").record.resume(tmp_path)


@pytest.mark.parametrize(
    ("before", "now", "key", "was"),
    [
        ({"weight": 2}, {}, "weight", "2.0"),
        ({"anchors": {"per_step": 4}}, {}, "anchors.per_step", "4"),
        ({}, {"easing": {"first": "all"}}, "easing.first", "16"),
        ({"hold_data": True}, {"hold_data": {"first": 4}}, "hold_data.first", "'all'"),
        ({"advanced": {"top_k": 9}}, {}, "advanced.top_k", "9"),
        (
            {"easing": False, "anchors": False, "advanced": {"published": {"temperature": 3}}},
            {"easing": False, "anchors": False, "advanced": {"published": True}},
            "advanced.published.temperature",
            "3.0",
        ),
    ],
)
def test_other_settings_are_refused_by_their_full_names(before, now, key, was):
    ours, theirs = a_receipt(PactConfig(**now)), a_receipt(PactConfig(**before))
    with pytest.raises(ReceiptError, match=f"constrained differently: {key} was {was}") as caught:
        ours.resume(theirs)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ({"anchors": False}, {}, "anchors"),
        ({}, {"anchors": False}, "anchors"),
        ({"hold_data": True}, {}, "hold_data"),
    ],
)
def test_a_term_switched_on_or_off_is_refused(before, now, key):
    with pytest.raises(ReceiptError, match=f"constrained differently: {key}"):
        a_receipt(PactConfig(**now)).resume(a_receipt(PactConfig(**before)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("terms", ["anchors"]),
        ("tokens", {"digest": "0", "count": 7, "tokenizer": "f" * 64}),
        ("reference", "copy"),
        ("anchors", "0"),
        ("columns", "0"),
        ("table", None),
    ],
)
def test_what_the_settings_led_to_must_be_the_same(name, value):
    with pytest.raises(ReceiptError, match=f"constrained differently: {name} was") as caught:
        a_receipt().resume(a_receipt(**{name: value}))
    assert caught.value.key == name


def test_where_things_lie_and_how_they_were_asked_for_may_differ():
    before = PactConfig(safety_tokens="a", reference="b", advanced={"store": "c", "chunk_size": 8})
    receipt = a_receipt(PactConfig(safety_tokens=TOKENS))
    receipt.resume(a_receipt(before, **ONE_TO_FOUR))
    assert receipt.total_steps == 4
