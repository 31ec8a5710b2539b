"""One choice of the reference over plain facts."""

from __future__ import annotations

import itertools

import pytest
from loop import a_batch, adapted, settings, trained
from tiny import tiny_model, tiny_tokenizer

from pact_plugin import PactConstraint
from pact_plugin.errors import ReferenceModelError
from pact_plugin.reference.choose import Choice, RunFacts, choose

STREAM = "the training data has no length"
READABLE, STREAMED, NOWHERE = RunFacts("store"), RunFacts("store", STREAM), RunFacts(None)

TABLE = {
    # (named, adapter, run, asked): source, table, name, lasting
    # Text of known length is read once, whatever computes it.
    (True, "none", READABLE, True): ("model", "store", "table", False),
    (False, "none", READABLE, True): ("itself", "store", "table", False),
    (False, "new", READABLE, True): ("adapter_off", "store", "table", True),
    (False, "trained", READABLE, True): ("itself", "store", "table", False),
    (False, "beside", READABLE, True): ("itself", "store", "table", False),
    # Else each step runs it.
    (True, "none", STREAMED, True): ("model", None, "model", True),
    (False, "none", STREAMED, True): ("copy", None, "copy", True),
    (False, "new", STREAMED, True): ("adapter_off", None, "adapter_off", True),
    (False, "trained", STREAMED, True): ("copy", None, "copy", True),
    (False, "beside", STREAMED, True): ("copy", None, "copy", True),
    # So it does in a loop that names no folder.
    (True, "none", NOWHERE, True): ("model", None, "model", True),
    (False, "none", NOWHERE, True): ("copy", None, "copy", True),
    (False, "new", NOWHERE, True): ("adapter_off", None, "adapter_off", True),
    (False, "trained", NOWHERE, True): ("copy", None, "copy", True),
    (False, "beside", NOWHERE, True): ("copy", None, "copy", True),
    # Where nothing is asked at the data, only the start of the run needs the aligned model.
    **{
        (named, adapter, run, False): (source, None, "start", source == "adapter_off")
        for run in (READABLE, STREAMED, NOWHERE)
        for named, adapter, source in (
            (True, "none", "model"),
            (False, "none", "itself"),
            (False, "new", "adapter_off"),
            (False, "trained", "itself"),
            (False, "beside", "itself"),
        )
    },
}


@pytest.mark.parametrize("facts", TABLE, ids=str)
def test_the_choice(facts):
    named, adapter, run, asked = facts
    choice = choose(named=named, adapter=adapter, run=run, asked=asked)
    assert choice == Choice(*TABLE[facts][:2], asked)
    assert (choice.source, choice.table, choice.name, choice.lasting) == TABLE[facts]


def test_the_table_holds_every_combination():
    adapters = [(True, "none"), *((False, one) for one in ("none", "new", "beside", "trained"))]
    everything = itertools.product(adapters, (READABLE, STREAMED, NOWHERE), (True, False))
    assert set(TABLE) == {(*adapter, run, asked) for adapter, run, asked in everything}


@pytest.mark.parametrize("facts", TABLE, ids=str)
@pytest.mark.parametrize(
    ("wrapper", "way_out"),
    [("fsdp", "name the aligned model as `reference`"), ("deepspeed", r"or use ZeRO stage 2\.")],
)
def test_sharded_parameters_have_no_copy_and_all_else_is_the_same(facts, wrapper, way_out):
    named, adapter, run, asked = facts
    sharded = RunFacts(run.folder, run.obstacle, sharded=wrapper)
    if TABLE[facts][0] != "copy":
        choice = choose(named=named, adapter=adapter, run=sharded, asked=asked)
        assert choice == choose(named=named, adapter=adapter, run=run, asked=asked)
        return
    why = run.obstacle or "no folder is named"
    with pytest.raises(ReferenceModelError, match=rf"{wrapper}: {why}.*{way_out}"):
        choose(named=named, adapter=adapter, run=sharded, asked=asked)


@pytest.mark.parametrize(
    ("build", "store", "name", "source"),
    [
        (tiny_model, True, "table", "itself"),
        (adapted, True, "table", "adapter_off"),
        (trained, True, "table", "itself"),
        (tiny_model, False, "copy", "copy"),
        (adapted, False, "adapter_off", "adapter_off"),
        (trained, False, "copy", "copy"),
    ],
)
def test_a_loop_of_ones_own(tmp_path, build, store, name, source):
    config = settings(advanced={"store": tmp_path} if store else {})
    constraint = PactConstraint(build(), tiny_tokenizer(), config)
    choice = constraint.reference.choice
    assert (choice.name, choice.source) == (name, source)
    assert constraint.record.receipt.reference == name
    assert (constraint.reference.table is not None) == constraint.reference.can_fill == store
    other = PactConstraint(build(), tiny_tokenizer(), config, reference_model=tiny_model(seed=4))
    assert other.reference.choice == Choice("model", str(tmp_path) if store else None)


def test_a_table_of_another_model_is_filled_by_it(tmp_path):
    """And not by the one in training, before or after its first step."""
    config = settings(hold_data=True, advanced={"store": tmp_path})
    aligned, batch = tiny_model(seed=4), a_batch()
    calls = []
    aligned.register_forward_hook(lambda *_: calls.append(1))
    constraint = PactConstraint(tiny_model(), tiny_tokenizer(), config, reference_model=aligned)
    read = len(calls)
    constraint.fill([batch], progress=False)
    assert len(calls) == read + 1
