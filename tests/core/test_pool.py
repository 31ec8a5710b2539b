"""What the aligned model is asked, and who that is (spec/PACT.md, clauses C10.1 and C11.2)."""

from __future__ import annotations

import pytest
import torch
from loop import FEW_ANCHORS, TOKENIZER, a_batch, adapted, loss_of, moved, probe_of
from pools import BARE, PROMPTS, TAUGHT, built, pool_of
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer
from tokenizers import AddedToken
from transformers import GenerationMixin

from pact_plugin.data.chat_template import prompt_ends, user_prompts
from pact_plugin.data.generation import Generation, special_ids
from pact_plugin.data.prompts import Prompt
from pact_plugin.errors import ConfigError
from pact_plugin.judge.text import JUDGED_TOKENS
from pact_plugin.model.head import LanguageHead
from pact_plugin.reference import pool as pool_module
from pact_plugin.reference.pool import BATCH, ask
from pact_plugin.reference.source import build_source

TEXTS = [one.prompt for one in PROMPTS]

pytestmark = pytest.mark.usefixtures("folder")


def test_the_answers_are_greedy_up_to_the_first_special_token_c10_1():
    model = tiny_aligned_model()
    special, ended = set(TOKENIZER.all_special_ids), 0
    prompts = (*TAUGHT[:3], *TAUGHT[-3:], *PROMPTS[:2])
    for one, asked in zip(prompts, pool_of(model, prompts).asked, strict=True):
        ids, answer = user_prompts(TOKENIZER, [one.prompt])[0], []
        assert (asked.prompt, asked.kind, asked.prompt_ids) == (one.prompt, one.kind, ids)
        while len(answer) < JUDGED_TOKENS:
            with torch.no_grad():
                token = int(model(torch.tensor([ids + answer])).logits[0, -1].argmax())
            if token in special:
                ended += 1
                break
            answer.append(token)
        assert asked.answer_ids == answer
    assert ended >= 6


@pytest.mark.parametrize("flat", [False, True])
def test_the_states_are_those_of_a_plain_pass_at_the_prompts_last_token_c11_2(monkeypatch, flat):
    monkeypatch.setattr(LanguageHead, "keeps_documents_apart", flat)
    model = tiny_model(attn_implementation="eager").train()
    (found,) = pool_of(model).hidden
    assert model.training
    assert len({len(user_prompts(TOKENIZER, [one.prompt])[0]) for one in PROMPTS}) > 5
    plain = tiny_model(attn_implementation="eager")
    for one, state in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([user_prompts(TOKENIZER, [one.prompt])[0]])
        with torch.no_grad():
            wanted = plain(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(state, wanted, atol=1e-5, rtol=1e-4)


def test_no_pass_reads_more_prompts_than_it_may():
    model, rows = tiny_model(), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    source = build_source("itself", model, None)
    ask(source, TOKENIZER, PROMPTS, prompt_ends(TOKENIZER, TEXTS), Generation(JUDGED_TOKENS, 3))
    assert max(rows) == 3


def test_rightly_is_as_the_kind_asks_for():
    pool = pool_of(tiny_aligned_model(), TAUGHT)
    assert all(one.as_expected for one in pool.asked)
    assert set(pool.pairs("harmful")) == set(REQUESTS)
    assert set(pool.pairs("benign")) == set(QUESTIONS)
    swapped = [Prompt(one.prompt, "benign" if one.kind == "harmful" else "harmful") for one in TAUGHT]
    pool = pool_of(tiny_aligned_model(), swapped)
    assert pool.pairs("harmful") == pool.pairs("benign") == {}


# --- who is asked ---


def test_a_model_that_cannot_answer(monkeypatch):
    monkeypatch.delattr(GenerationMixin, "generate")
    for changes in ({}, {"easing": False, "anchors": FEW_ANCHORS}, BARE | {"safety_tokens": None}):
        with pytest.raises(ConfigError, match=r"no method `generate`.*`safety_tokens`.*`easing: false`"):
            built(tiny_model(), **changes)
    model = tiny_model()
    assert torch.isfinite(loss_of(built(model, **BARE), moved(model), a_batch()))


def test_a_model_is_not_asked_where_nothing_needs_its_answers(generated, folder):
    built(tiny_model(), **BARE)
    built(tiny_model(), weight=0, easing=False, hold_data=True)
    assert generated == []
    assert not folder.exists()


def test_another_aligned_model_is_the_one_that_is_asked(generated):
    aligned, model = tiny_model(seed=4), tiny_model()
    constraint = built(model, reference_model=aligned)
    assert generated == [aligned]
    assert probe_of(constraint) == probe_of(built(tiny_model(seed=4)))
    assert probe_of(constraint) != probe_of(built(tiny_model()))


def test_asking_leaves_the_model_and_the_random_state_as_they_were():
    model = tiny_model().train()
    model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    pool_of(model)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_with_an_adapter_is_asked_with_it_off(generated):
    model = adapted()
    source = build_source("adapter_off", model)
    expected = pool_of(tiny_model())
    moved(model)
    found = pool_module.ask(
        source, TOKENIZER, PROMPTS, prompt_ends(TOKENIZER, TEXTS), Generation(JUDGED_TOKENS, BATCH)
    )
    assert len(generated) == 2
    assert [one.answer_ids for one in found.asked] == [one.answer_ids for one in expected.asked]
    torch.testing.assert_close(found.hidden, expected.hidden)


@pytest.mark.parametrize("added", [["pad_token"], ["pad_token", "eos_token"]])
def test_padding_has_an_embedding_where_the_tokenizers_own_was_added_without(added):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.add_special_tokens({name: f"[{name}]" for name in added})
    assert tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings
    source = build_source("itself", model)
    found = ask(source, tokenizer, PROMPTS, prompt_ends(tokenizer, TEXTS), Generation(JUDGED_TOKENS, BATCH))
    for one in found.asked:
        alone = ask(source, TOKENIZER, [PROMPTS[0]], [[one.prompt_ids]], Generation(JUDGED_TOKENS, BATCH))
        assert one.answer_ids == alone.asked[0].answer_ids


def test_a_template_with_todays_date_asks_the_same_on_every_day():
    """Llama 3.2 has one: the answers of yesterday would be asked anew, and a resumed run would find another table."""
    dated = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    tokenizer = tiny_tokenizer(chat_template=dated)
    assert tokenizer.decode(user_prompts(tokenizer, ["Hello"])[0]) == "26 Jul 2024 Hello"


IN_PARTS = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = "{% for m in messages %}{{ m['content'][0]['text'] + '\n' }}{% endfor %}"  # raises for text


@pytest.mark.parametrize(
    ("template", "begin", "end"), [(IN_PARTS, "user: ", "\nassistant: "), (STRICT, "", "\n")]
)
def test_a_template_that_takes_content_in_parts_alone_is_given_parts(template, begin, end):
    """Those of LLaVA and SmolVLM write nothing for text: all prompts would be the same."""
    tokenizer = tiny_tokenizer(chat_template=template)
    for asked in prompt_ends(tokenizer, ["Hello", " one two"]):
        assert [tokenizer.decode(ids) for ids in asked] == [f"{begin}Hello{end}", f"{begin} one two{end}"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('a system message, please') }}", r"refuses.*\(a system message, please\)"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "leaves the user's prompt out"),
    ],
)
def test_a_template_that_takes_no_users_prompt_is_named(template, message):
    tokenizer = tiny_tokenizer(chat_template=template)
    with pytest.raises(
        ConfigError, match=rf"tokenizer\.chat_template.*{message}.*Set `tokenizer.chat_template`"
    ):
        user_prompts(tokenizer, ["Hello"])


def test_special_tokens_without_a_name_end_an_answer():
    """Such as Phi's <|end|>: the tokenizer names another token as the end of a sequence."""
    tokenizer = tiny_tokenizer()
    assert special_ids(tokenizer) == set(tokenizer.all_special_ids)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True), AddedToken("<tool>", special=False)])
    end, tool = tokenizer.convert_tokens_to_ids(["<|end|>", "<tool>"])
    assert end not in tokenizer.all_special_ids
    assert end in special_ids(tokenizer)
    assert tool not in special_ids(tokenizer)
