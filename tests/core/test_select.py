"""Choosing safety tokens with a tiny model that was taught to refuse: against a plain loop, and its bad input."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    HELP,
    QUESTIONS,
    REFUSAL,
    REQUESTS,
    tiny_aligned_model,
    tiny_model,
    tiny_tokenizer,
)

import pact_plugin
from pact_plugin import SafetyTokens
from pact_plugin.data import generation as generate
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.errors import ConfigError
from pact_plugin.tokens.select import Selection, select_safety_tokens

TOP_K = 20


@pytest.fixture(scope="module")
def aligned():
    return tiny_aligned_model()


@pytest.fixture(scope="module")
def base():
    return tiny_model(seed=1)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def choose(model, tokenizer, **settings) -> SafetyTokens:
    defaults = {"harmful": REQUESTS, "top_k": TOP_K, "max_new_tokens": 12}
    if settings.get("contrast") != "base":
        defaults["benign"] = QUESTIONS
    beside = {key: settings.pop(key) for key in ("base_model", "progress") if key in settings}
    return select_safety_tokens(model, tokenizer, Selection(**(defaults | settings)), **beside)


def mean_probability(model, tokenizer, prompts: list[list[int]], answer: str) -> torch.Tensor:
    """[V]: the mean over answers, one at a time, half of the first position, half of the mean over all (C8.5)."""
    answer_ids = tokenizer(answer)["input_ids"]
    means = []
    for prompt in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer_ids])).logits[0].double()
        logits[:, tokenizer.all_special_ids] = -torch.inf
        p = logits[len(prompt) - 1 : -1].softmax(-1)
        means.append((p[0] + p.mean(0)) / 2)
    return torch.stack(means).mean(0)


def chat(tokenizer, prompts) -> list[list[int]]:
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for prompt in prompts
    ]


def expected_direction(p_aligned: torch.Tensor, p_contrast: torch.Tensor) -> dict[int, float]:
    kept = p_aligned.topk(TOP_K).indices
    difference = (p_aligned - p_contrast)[kept]
    weights = (difference - difference.mean()) / (difference - difference.mean()).norm()
    return dict(zip(kept.tolist(), weights.tolist(), strict=True))


def test_benign_contrast_is_what_a_plain_loop_computes(aligned, tokenizer):
    chosen = choose(aligned, tokenizer)
    refusing = mean_probability(aligned, tokenizer, chat(tokenizer, REQUESTS), REFUSAL)
    helping = mean_probability(aligned, tokenizer, chat(tokenizer, QUESTIONS), HELP)
    expected = expected_direction(refusing, helping)
    assert dict(zip(chosen.ids, chosen.weights, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_base_contrast_is_what_a_plain_loop_computes(aligned, base, tokenizer):
    chosen = choose(aligned, tokenizer, contrast="base", base_model=base)
    refusing = mean_probability(aligned, tokenizer, chat(tokenizer, REQUESTS), REFUSAL)
    plain = [tokenizer(f"User: {prompt}\n\nAssistant: ")["input_ids"] for prompt in REQUESTS]
    expected = expected_direction(refusing, mean_probability(base, tokenizer, plain, REFUSAL))
    assert dict(zip(chosen.ids, chosen.weights, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_the_tokens_of_the_refusal_are_held_and_those_of_help_are_not(aligned, tokenizer):
    held = set(choose(aligned, tokenizer).positive.ids)
    refusal, help_ = (set(tokenizer(text)["input_ids"]) for text in (REFUSAL, HELP))
    assert refusal - help_ <= held
    assert not held & (help_ - refusal)


def test_special_tokens_are_never_chosen(aligned, base, tokenizer):
    everything = len(tokenizer) - len(tokenizer.all_special_ids)
    for settings in ({}, {"contrast": "base", "base_model": base}):
        chosen = choose(aligned, tokenizer, top_k=everything, **settings)
        assert len(chosen) == everything
        assert not set(chosen.ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_change_nothing(aligned, tokenizer, batch_size):
    expected = choose(aligned, tokenizer)
    chosen = choose(aligned, tokenizer, batch_size=batch_size)
    assert chosen.ids == expected.ids
    assert chosen.weights == pytest.approx(expected.weights, abs=1e-5)


def test_only_refused_requests_and_helped_questions_count(aligned, tokenizer):
    expected = choose(aligned, tokenizer)
    harmful, benign = (
        REQUESTS + REQUESTS[:4] + QUESTIONS[:3],
        REQUESTS[:2] + QUESTIONS,
    )  # repetitions are dropped
    mixed = choose(aligned, tokenizer, harmful=harmful, benign=benign)
    assert mixed.ids == expected.ids
    assert mixed.weights == pytest.approx(expected.weights, abs=1e-5)
    assert (mixed.provenance["harmful_prompts"], mixed.provenance["refused"]) == ("13", "10")
    assert (mixed.provenance["benign_prompts"], mixed.provenance["helped"]) == ("12", "10")


def test_nothing_of_the_callers_is_changed(aligned, base, tokenizer):
    model, other = copy.deepcopy(aligned), copy.deepcopy(base)
    model.train()
    model.model.layers[0].eval()  # a frozen part, as fine-tuning scripts have it
    modes = [module.training for module in model.modules()]
    tokenizer.padding_side = "right"
    torch.manual_seed(5)
    state = torch.get_rng_state()
    choose(model, tokenizer, contrast="base", base_model=other)
    assert [module.training for module in model.modules()] == modes
    assert not other.training
    assert torch.equal(torch.get_rng_state(), state)
    assert tokenizer.padding_side == "right"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_modes_are_restored_after_an_error(aligned, tokenizer):
    model = copy.deepcopy(aligned).train()
    with pytest.raises(ConfigError):
        choose(model, tokenizer, harmful=QUESTIONS)
    assert model.training


def test_dropout_is_off(tokenizer):
    model = tiny_aligned_model("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    expected = choose(model, tokenizer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    chosen = choose(model.train(), tokenizer)
    assert chosen.ids == expected.ids
    assert chosen.weights == pytest.approx(expected.weights, abs=1e-5)


def test_provenance_says_how_the_tokens_were_chosen(aligned, base, tokenizer):
    chosen = choose(aligned, tokenizer, contrast="base", base_model=base)
    assert chosen.provenance == {
        "contrast": "base",
        "model": "LlamaForCausalLM",
        "base_model": "LlamaForCausalLM",
        "harmful_prompts": "10",
        "refused": "10",
        "top_k": str(TOP_K),
        "first_token_mass": chosen.provenance["first_token_mass"],
        "max_new_tokens": "12",
        "prompt_format": "chat",
        "pact_plugin": pact_plugin.__version__,
    }
    chosen.check(tokenizer, vocab_size=aligned.config.vocab_size)


def first_mass(model, tokenizer, tokens: SafetyTokens) -> float:
    ids = [token for token, weight in zip(tokens.ids, tokens.weights, strict=True) if weight > 0]
    with torch.no_grad():
        found = [
            model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)[ids].sum()
            for prompt in chat(tokenizer, REQUESTS)
        ]
    return float(torch.stack(found).mean())


def test_the_provenance_says_how_much_of_the_beginning_of_refusals_the_tokens_hold(
    aligned, tokenizer, recwarn
):
    """Clause C8.5."""
    chosen, few = choose(aligned, tokenizer), choose(aligned, tokenizer, top_k=2)
    masses = [first_mass(aligned, tokenizer, tokens) for tokens in (chosen, few)]
    assert masses[0] > masses[1] + 0.01
    for tokens, mass in zip((chosen, few), masses, strict=True):
        assert float(tokens.provenance["first_token_mass"]) == pytest.approx(mass, abs=1e-3)
    assert not [one for one in recwarn if one.category is UserWarning]


def test_progress_counts_every_prompt(aligned, tokenizer):
    seen: dict[str, list[int]] = {}

    def progress(done: int, total: int, description: str) -> None:
        assert total == 10
        seen.setdefault(description, []).append(done)

    choose(aligned, tokenizer, batch_size=4, progress=progress)
    assert list(seen) == [
        "Answering harmful prompts",
        "Answering benign prompts",
        "Reading the refusals",
        "Reading the contrast",
    ]
    assert all(counts == [4, 8, 10] for counts in seen.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrast": "both"}, "contrast='both'"),
        ({"contrast": "base"}, "base_model: the contrast `base` needs one"),
        ({"base_model": "given"}, "base_model: the contrast `benign` uses no other model"),
        ({"contrast": "base", "base_model": "given", "benign": QUESTIONS}, "benign: "),
        ({"top_k": 1}, "top_k=1"),
        ({"top_k": 1000}, "top_k=1000"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"harmful": ()}, "harmful: the model refuses 0 of 0"),
        ({"harmful": REQUESTS[:7]}, "harmful: the model refuses 7 of 7 harmful prompts, fewer than 8"),
        ({"harmful": QUESTIONS}, "harmful: the model refuses 0 of 10"),
        ({"benign": REQUESTS}, "benign: the model helps with 0 of 10"),
    ],
)
def test_bad_settings_are_refused_by_name(aligned, base, tokenizer, settings, message):
    if settings.get("base_model"):
        settings = settings | {"base_model": base}
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        choose(aligned, tokenizer, **settings)
    assert caught.value.remedy


def test_a_base_model_of_another_vocabulary_is_refused(aligned, tokenizer):
    with pytest.raises(ConfigError, match="base_model='LlamaForCausalLM': it has 300 logits"):
        choose(aligned, tokenizer, contrast="base", base_model=tiny_model(vocab_size=300, pad_token_id=None))


def test_a_base_model_may_lack_added_special_tokens(aligned, base, tokenizer):
    ordinary = len(tokenizer) - len(tokenizer.all_special_ids)
    smaller = copy.deepcopy(base)
    smaller.resize_token_embeddings(ordinary)
    expected = choose(aligned, tokenizer, contrast="base", base_model=base)
    chosen = choose(aligned, tokenizer, contrast="base", base_model=smaller)
    assert chosen.ids == expected.ids
    assert chosen.weights == pytest.approx(expected.weights, abs=1e-5)


def test_few_refusals_are_warned_of(aligned, tokenizer):
    mixed = [*REQUESTS, *QUESTIONS, "Please draw a cake, and bake it"]
    with pytest.warns(UserWarning, match="Fewer than half: the model refuses 10 of 21"):
        choose(aligned, tokenizer, harmful=mixed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(aligned, tokenizer)


def test_without_a_chat_template_prompts_are_plain_and_that_is_said(aligned):
    tokenizer = tiny_tokenizer(chat_template=None)
    chat_text = (
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant"  # "\n" follows, as after any plain prompt
    )
    plain = {
        "harmful": [chat_text.format(p) for p in REQUESTS],
        "benign": [chat_text.format(p) for p in QUESTIONS],
    }
    with pytest.warns(UserWarning, match="no chat template"):
        chosen = choose(aligned, tokenizer, **plain)
    assert chosen.provenance["prompt_format"] == "plain"
    assert chosen.ids == choose(aligned, tiny_tokenizer()).ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_neither_answers_nor_logits(architecture, tokenizer):
    model = tiny_model(architecture)
    prompts = [user_prompts(tokenizer, [text])[0] for text in ("Hi", "How do I write a program?", "Sure")]

    def answer(batch_size: int):
        settings = {"batch_size": batch_size, "report": lambda done: None}
        with generate.inspecting(model):
            found = generate.answers(model, tokenizer, prompts, generate.Generation(6, batch_size))
            pairs = list(zip(prompts, [[300, 290, 270, 5], [300], [17, 18, 19]], strict=True))
            return found, list(generate.answer_logits(model, pairs, **settings))

    (one_by_one, single_logits), (together, batch_logits) = answer(1), answer(3)
    assert one_by_one == together
    assert [len(logits) for logits in batch_logits] == [4, 1, 3]
    for single, batched in zip(single_logits, batch_logits, strict=True):
        torch.testing.assert_close(batched, single, atol=1e-4, rtol=1e-4)
    prompt, first = prompts[0], single_logits[0]
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([[*prompt, 300, 290, 270, 5]])).logits[0]
    torch.testing.assert_close(first, whole[len(prompt) - 1 : -1], atol=1e-4, rtol=1e-4)


def test_the_head_of_a_model_that_answers_is_given_contiguous_states(tokenizer):
    model, seen = tiny_model(), []
    prompts = [user_prompts(tokenizer, [text])[0] for text in ("Hi", "Sure")]
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    watched = model.lm_head.register_forward_hook(
        lambda _, args, output: seen.append(args[0].is_contiguous())
    )
    with generate.inspecting(model):
        model(input_ids=ids, logits_to_keep=1)
        assert seen == [False], "what transformers gives it"
        generate.answers(model, tokenizer, prompts, generate.Generation(3, 2))
    assert len(seen) > 1
    assert all(seen[1:])
    watched.remove()
    assert not model.lm_head._forward_pre_hooks


def test_answers_read_each_token_once_whatever_the_checkpoint_says_of_its_cache(tokenizer):
    model, read = tiny_model(), []
    model.config.use_cache = model.generation_config.use_cache = False
    prompts = [user_prompts(tokenizer, [text])[0] for text in ("Hi", "Sure")]
    watched = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with generate.inspecting(model):
        generate.answers(model, tokenizer, prompts, generate.Generation(4, 2))
    watched.remove()
    assert len(read) > 1
    assert read == [max(map(len, prompts)), *[1] * (len(read) - 1)]


@pytest.mark.parametrize(
    "setting",
    [
        {"stop_strings": ["a"]},
        {"num_return_sequences": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 3},
    ],
)
def test_answers_are_greedy_whatever_the_checkpoint_says_of_generation(tokenizer, setting):
    prompts = user_prompts(tokenizer, ["Hi", "Sure"])
    found = []
    for given in ({}, setting):
        model = tiny_model()
        for name, value in given.items():
            setattr(model.generation_config, name, value)
        with generate.inspecting(model):
            found.append(generate.answers(model, tokenizer, prompts, generate.Generation(6, 2)))
    assert found[0] == found[1]
