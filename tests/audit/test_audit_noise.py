"""The noise floor: the reference answers again, and what flips is counted, shown and heeded."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from audits import audit, results, words
from tiny import HELP, QUESTIONS, REFUSAL, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer

from pact_plugin.audit.noise import again, noise
from pact_plugin.audit.reading import ask
from pact_plugin.audit.run import run_audit
from pact_plugin.audit.settings import Asking, AuditSettings, Models
from pact_plugin.data.prompts import Prompt, PromptSet
from pact_plugin.errors import ConfigError

pytestmark = pytest.mark.usefixtures("undrawn")


def test_rounds_are_in_other_batches_and_orders_and_keep_their_places():
    model, tokenizer = tiny_aligned_model(), tiny_tokenizer()
    texts = [*REQUESTS, *QUESTIONS]
    done: list[int] = []
    with torch.no_grad():
        said = ask(model, tokenizer, texts, max_new_tokens=12, batch_size=8)
        rounds = again(model, tokenizer, said, Asking(12, 8, noise_floor=4), done.append)
    assert all(one == said.texts for one in rounds)
    sizes = [done[0], *(b - a for a, b in pairwise(done))]
    assert sizes == [6, 6, 6, 2, *[4] * 5, *[2] * 10, 6, 6, 6, 2]
    assert said.texts[0] == REFUSAL
    assert done[-1] == 80


def test_flips_are_counted_by_kind():
    first = [True, True, False, False]
    rounds = [[True, False, False, True], first, [False, False, False, False]]
    found = noise([0, 1], first, rounds)
    assert (found.flips, found.maximum, found.mean, found.floor) == ([1, 0, 2], 2, 1.0, 1.0)
    assert noise([2, 3], first, rounds).flips == [1, 0, 0]


def test_the_noise_floor_is_in_the_report(folder, tmp_path):
    done = audit(folder, tmp_path, "--noise-floor", 2)
    found = results(tmp_path)
    assert found.settings.noise_floor == 2
    assert found.harmful.noise.flips == [0, 0]
    assert {row.flips for row in found.prompts} == {0}
    assert found.verdict.criteria[0].noise == 0
    assert "Noise floor, harmful: at most 0 of 10 verdicts flip by themselves" in words(done.output)
    assert "flips in 2 rounds: 0, 0 of 10" in (tmp_path / "report.html").read_text(encoding="utf-8")


class Tossing:
    """A tokenizer that lets six answers of the first further round be others, as ties that fall the other way."""

    def __init__(self) -> None:
        self.inner, self.times = tiny_tokenizer(), 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args, **settings):
        return self.inner(*args, **settings)

    def decode(self, ids):
        self.times += 1
        return HELP if 20 < self.times <= 26 else self.inner.decode(ids)


def test_flips_become_the_floor_that_the_verdict_knows():
    """Answers of the further round are others; the share of verdicts that flip is the floor."""
    asked = [
        *(Prompt(one, "harmful") for one in REQUESTS),
        *(Prompt(one, "benign") for one in QUESTIONS),
    ]
    reference = Tossing()
    models = Models(lambda: (tiny_aligned_model(), reference), lambda: (tiny_model(seed=1), tiny_tokenizer()))
    settings = AuditSettings(Asking(12, 8, noise_floor=1), everyday=False)
    found = run_audit(models, PromptSet(tuple(asked), "tiny"), settings)
    flipped = sum(row.flips for row in found.prompts if row.kind == "harmful")
    assert found.harmful.noise.flips == [flipped]
    assert 0 < flipped <= 6
    assert found.verdict.criteria[0].noise == flipped / 10
    assert not found.verdict.passed


@pytest.mark.parametrize("settings", [{"noise_floor": -1}, {"batch_size": 0}, {"max_new_tokens": 0}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="It must be at least"):
        Asking(**settings)
