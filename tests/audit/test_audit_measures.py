"""What an audit measures beside refusals: coherence, the user's task, everyday questions."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from audits import adapted, audit, results, words
from tiny import HELP, QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from pact_plugin.audit import everyday, task
from pact_plugin.audit.coherence import coherence
from pact_plugin.audit.reading import Answers, ask
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.heldout import HeldOut
from pact_plugin.errors import ConfigError, NonFiniteError

pytestmark = pytest.mark.usefixtures("undrawn")


def answer_logprobs(model, question: str, answer: list[int]) -> np.ndarray:
    """Full log-probabilities before each token of an answer."""
    asked = user_prompts(tiny_tokenizer(), [question])[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
    return logits.double().log_softmax(-1).numpy()


# --- everyday questions ---


def test_the_everyday_questions_are_sixty_short_ones():
    found = everyday.questions()
    assert len(found) == len(set(found)) == 60
    assert all(len(one) < 120 and one == " ".join(one.split()) for one in found)
    assert not set(found) & (set(QUESTIONS) | set(REQUESTS))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_everyday_divergence_is_that_of_the_full_distributions(architecture):
    model, other, tokenizer = tiny_model(architecture), tiny_model(architecture, seed=1), tiny_tokenizer()
    asked = ["What is a tree?", "Bake a cake", "Draw"]
    with torch.no_grad():
        said = ask(model, tokenizer, asked, max_new_tokens=7, batch_size=2)
        kept = everyday.keep(model, said, batch_size=2)
        found = everyday.divergence(other, said.questions, kept, batch_size=3)
        same = everyday.divergence(model, said.questions, kept, batch_size=2)
    for question, answer, value in zip(asked, said.tokens, found, strict=True):
        p, q = (answer_logprobs(one, question, answer) for one in (model, other))
        assert value == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-3)
    assert same == pytest.approx([0.0] * 3, abs=1e-5)
    summary = everyday.summary(kept, found)
    assert summary.kl == pytest.approx(sum(found) / summary.tokens, rel=1e-5)
    assert summary.low <= summary.kl <= summary.high


def test_what_is_kept_outlives_the_reference_but_for_its_head():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.no_grad():
        said = ask(model, tokenizer, ["Draw"], max_new_tokens=4, batch_size=1)
        kept = everyday.keep(model, said, batch_size=1)
    assert sum(one.numel() for one in kept.head.decoder.parameters()) == 0
    assert all(one.device.type == "cpu" for one in kept.hidden)


def test_a_divergence_without_end_is_refused_and_silence_has_none():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.no_grad():
        said = ask(model, tokenizer, ["Draw"], max_new_tokens=4, batch_size=1)
        kept = everyday.keep(model, said, batch_size=1)
        nothing = everyday.keep(model, Answers(said.questions, [[]], [""]), batch_size=1)
    with pytest.raises(NonFiniteError, match=r"not finite.*`everyday=False`"):
        everyday.summary(kept, [float("inf")])
    assert everyday.summary(nothing, [0.0]) is None


def test_everyday_questions_are_asked_unless_they_are_not(folder, tmp_path):
    done = audit(folder, tmp_path, "--everyday")
    found = results(tmp_path).everyday
    assert found.questions > 50
    assert 0 < found.low < found.kl < found.high
    assert f"Everyday questions: KL {found.kl:.4f} nats per token" in words(done.output)
    assert "Does it still work?" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- the user's task ---


def test_the_likelihood_of_a_task_is_that_of_its_answers(folder, tmp_path):
    done = audit(folder, tmp_path, "--task", folder / "task.jsonl")
    found = results(tmp_path).task
    answer = tiny_tokenizer()(HELP)["input_ids"]
    for model, value in ((tiny_aligned_model(), found.reference), (tiny_model(seed=1), found.candidate)):
        own = [answer_logprobs(model, one, answer)[range(len(answer)), answer].mean() for one in QUESTIONS]
        assert value == pytest.approx(float(np.mean(own)), rel=1e-3)
    assert found.low <= found.difference <= found.high < 0
    assert (found.items, found.tokens) == (10, 10 * len(answer))
    assert "Held-out task: " in done.output


TALK = HeldOut(
    (
        {"role": "user", "content": "tea"},
        {"role": "assistant", "content": "milk"},
        {"role": "user", "content": "cake"},
    ),
    "d e",
    7,
)


def asked(tokenizer) -> str:
    """The text of a conversation up to its answer."""
    ((question, answer),) = task.pairs(tiny_model(), tokenizer, [TALK])
    assert tokenizer.decode(answer) == "d e"
    return tokenizer.decode(question)


def test_a_task_may_be_a_conversation():
    text = asked(tiny_tokenizer())
    assert text.endswith("<|im_start|>assistant\n")
    assert text.index("tea") < text.index("milk") < text.index("cake")


def test_without_a_chat_template_a_task_is_plain_text_that_does_not_end():
    tokenizer = tiny_tokenizer(chat_template=None)
    assert asked(tokenizer) == "tea\nmilk\ncake\n"
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"$A {end[0]}", None, [end])
    assert tokenizer("a")["input_ids"][-1] == end[1]
    assert asked(tokenizer) == "tea\nmilk\ncake\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (  # nothing of what is no list of parts
            "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}|"
            "{% endif %}{% endfor %}{% endfor %}",
            "tea|milk|cake|",
        ),
        ("{{ strftime_now('%d %b %Y') }} {{ messages[2]['content'] }}", "26 Jul 2024 cake"),
    ],
)
def test_a_task_is_asked_in_parts_and_without_todays_date_as_prompts_are(template, text):
    assert asked(tiny_tokenizer(chat_template=template)) == text


def test_no_change_of_a_task_has_no_width():
    same = task.likelihood([torch.tensor([-1.0, -2.0])], [torch.tensor([-1.0, -2.0])])
    assert (same.difference, same.low, same.high, same.reference) == (0, 0, 0, -1.5)
    assert task.likelihood([], []) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "please " * 300, "answer": "b"}, "--task='line 1': a prompt of"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 1 has no `prompt`"),
    ],
)
def test_a_task_that_cannot_be_read_ends_it(folder, tmp_path, row, message):
    (tmp_path / "t.jsonl").write_text(json.dumps(row), encoding="utf-8")
    done = audit(folder, tmp_path / "out", "--task", tmp_path / "t.jsonl")
    assert done.exit_code == 2
    assert message in words(done.output)
    assert "answering" not in done.output


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only users') }}", "the chat template refuses .*only users"),
        (
            "{% for m in messages %}{{ m['role'] }}{% endfor %}",
            "the chat template leaves the user's prompt out",
        ),
    ],
)
def test_a_template_that_does_not_take_a_conversation_is_named_with_its_line(template, message):
    with pytest.raises(ConfigError, match=f"^task='line 7': {message}"):
        task.pairs(tiny_model(), tiny_tokenizer(chat_template=template), [TALK])


# --- coherence ---


def test_an_adapters_answers_are_read_with_it_switched_off(folder, tmp_path):
    """As a reference that is loaded once more reads those of the merged model."""
    apart = audit(folder, tmp_path / "adapter", "--adapter", folder / "adapter", candidate=None)
    merged = audit(folder, tmp_path / "merged", "--coherence", candidate="merged")
    one, two = results(tmp_path / "adapter").harmful.coherence, results(tmp_path / "merged").harmful.coherence
    assert one.candidate == pytest.approx(two.candidate, rel=1e-3)
    assert one.reference == pytest.approx(two.reference, rel=1e-3)
    assert one.candidate < one.reference
    assert apart.output.count("Reference: /") == 1
    assert merged.output.count("Reference: /") == 2
    answers = {row.prompt: row.candidate for row in results(tmp_path / "adapter").prompts}
    tokenizer, aligned = tiny_tokenizer(), tiny_aligned_model()
    model = adapted(tiny_aligned_model())
    for question in REQUESTS[:2]:
        with torch.no_grad():
            (said,) = ask(model, tokenizer, [question], max_new_tokens=12, batch_size=1).tokens
        own = answer_logprobs(aligned, question, said)[range(len(said)), said].mean()
        assert answers[question].likelihood == pytest.approx(float(own), rel=1e-3)


def test_an_adapter_with_biases_is_read_by_the_reference_itself(folder, tmp_path):
    """PEFT leaves biases of the model that were trained beside it in place where it is switched off."""
    shutil.copy(folder / "prompts.jsonl", tmp_path)
    tiny_aligned_model("qwen2").save_pretrained(tmp_path / "aligned")
    model = adapted(tiny_aligned_model("qwen2"), bias="all")
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    for bias in biases:
        torch.nn.init.normal_(bias, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for name in ("aligned", "merged"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    apart = audit(tmp_path, tmp_path / "one", "--adapter", tmp_path / "adapter", candidate=None)
    audit(tmp_path, tmp_path / "two", "--coherence", candidate="merged")
    one, two = (results(tmp_path / name).harmful.coherence for name in ("one", "two"))
    assert biases
    assert one.candidate == pytest.approx(two.candidate, rel=1e-3)
    assert apart.output.count("Reference: /") == 2


def test_without_being_asked_for_it_is_not_measured(folder, tmp_path):
    done = audit(folder, tmp_path)
    assert results(tmp_path).harmful.coherence is None
    assert "Coherence" not in done.output
    assert done.output.count("Reference: /") == 1


def test_coherence_without_safety_tokens(folder, tmp_path):
    """The reference's own answers are read, too, where no safety tokens were chosen along them."""
    (tmp_path / "p.txt").write_text("\n".join(QUESTIONS), encoding="utf-8")
    audit(folder, tmp_path / "out", "--benign", tmp_path / "p.txt", "--coherence")
    found = results(tmp_path / "out")
    assert found.safety_tokens is None
    assert found.benign.coherence.reference > -0.5 > -4 > found.benign.coherence.candidate
    assert "Read them: they may be word salad" in " ".join(found.notes)


def test_coherence_counts_what_is_unlikely_and_leaves_out_what_is_empty():
    found = coherence([-0.5, -1.5, None], [-1.0, None, -6.0])
    assert (found.reference, found.candidate, found.answers) == (-1.0, -3.5, 2)
    assert (found.unlikely, found.reference_unlikely) == (1, 0)
    assert coherence([None], [-1.0]) is None
