"""A run that is resumed elsewhere needs the same answers, states and tokens, which lie beside it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from loop import FEW_ANCHORS, TOKENIZER, probe_of, settings
from pools import PROMPTS, TAUGHT, ask_about, built, truncated
from tiny import tiny_aligned_model, tiny_model

from pact_plugin import PactConstraint
from pact_plugin.data.facts import DataFacts
from pact_plugin.errors import ReceiptError
from pact_plugin.reference import cache, pool_states, pool_tokens

pytestmark = pytest.mark.usefixtures("folder")


def test_states_where_the_datas_answers_begin_are_kept(generated, folder, monkeypatch):
    """New ones would differ by rounding on other hardware, and a run that is resumed there would not go on."""
    ask_about(monkeypatch, PROMPTS)
    header = tuple(TOKENIZER.encode("<|im_start|>assistant", add_special_tokens=False))
    data = DataFacts(endings=(header,))

    def probe():
        return probe_of(PactConstraint(tiny_model(), TOKENIZER, settings(), data=data))

    first = probe()
    assert first != probe_of(PactConstraint(tiny_model(), TOKENIZER, settings()))
    (file,) = folder.glob("*.states.safetensors")
    monkeypatch.setattr(pool_states, "end_states", None)
    assert probe() == first
    monkeypatch.undo()
    ask_about(monkeypatch, PROMPTS)
    truncated(file)
    assert probe() == first


def test_answers_lie_beside_the_run_so_that_it_goes_on_where_the_cache_is_not(
    tmp_path, generated, folder, monkeypatch
):
    ask_about(monkeypatch, (*TAUGHT, *PROMPTS))
    header = tuple(TOKENIZER.encode("<|im_start|>assistant", add_special_tokens=False))

    def begun() -> PactConstraint:
        config = settings(safety_tokens=None, advanced={"store": tmp_path / "store"})
        return PactConstraint(tiny_aligned_model(), TOKENIZER, config, data=DataFacts(endings=(header,)))

    first = begun()
    answers = tmp_path / "store" / "answers"
    assert sorted(one.name for one in answers.iterdir()) == sorted(one.name for one in folder.iterdir())
    assert len(list(answers.iterdir())) == 3, "answers, states where the data's answers begin, tokens"
    monkeypatch.setenv("PACT_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(pool_tokens, "choose_from_answers", None)
    assert (probe_of(begun()), begun().tokens) == (probe_of(first), first.tokens)
    assert len(generated) == 1
    shutil.rmtree(answers)
    begun()
    assert len(generated) == 1, "the cache has them, too, by now"
    assert len(list(answers.iterdir())) == 3


@pytest.mark.parametrize("what", ["anchors", "columns"])
def test_a_resumed_run_must_have_the_same_answers_and_probe(tmp_path, folder, what):
    """Without a table, whose header would tell: what was asked anew elsewhere differs by rounding."""
    anchors = FEW_ANCHORS | {"tokens": 4} if what == "anchors" else False
    changes = {"anchors": anchors, "easing": what == "columns"}
    built(tiny_model(), **changes).record.write(tmp_path)
    built(tiny_model(), **changes).record.resume(tmp_path)
    (file,) = folder.glob("*.safetensors")
    hidden, metadata = cache.read_states(file)
    answers = json.loads(metadata["answers"])
    if what == "anchors":
        answers = [[*answer[:1], *answer] for answer in answers]
    else:
        hidden = hidden + 0.1 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    cache.write_states(file, hidden, **(metadata | {"answers": json.dumps(answers)}))
    with pytest.raises(ReceiptError, match=rf"{what} was .*PACT_CACHE"):
        built(tiny_model(), **changes).record.resume(tmp_path)
