"""Prompts and conversations as token ids: in a model's chat template, or as plain text where there is none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pact_plugin.data.tokenizers import require_usable
from pact_plugin.errors import ConfigError

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DATE = datetime(2024, 7, 26)
"""The date that Llama's templates give where they know none."""

Messages = Sequence[Mapping[str, str]]
"""A conversation as chat templates take it: messages with `role` and `content`."""


def user_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each user's prompt up to where the answer begins, in the tokenizer's chat format if it has one.

    Several at once are many times faster than one by one.

    Raises:
        ConfigError: The tokenizer is one of mistral-common, or its chat template cannot be used.
    """
    return _prompts(tokenizer, [_dialogue(prompt) for prompt in prompts])


def conversation_prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """The same of one conversation, up to where its next answer begins.

    Raises:
        ConfigError: As for `user_prompts`.
    """
    return _prompts(tokenizer, [list(messages)])[0]


def trained_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The same as they stand in training data: up to where a conversation and the prompt to answer first differ.

    Most are those of `user_prompts`. Where a model can think aloud, data has the answer begin before the empty thoughts
    that `user_prompts` end with.
    """
    if not prompts or not has_chat_template(tokenizer):
        return user_prompts(tokenizer, prompts)
    asked = _rendered(tokenizer, [_dialogue(prompt) for prompt in prompts])
    answers = [_dialogue(prompt, "Sure, here is") for prompt in prompts]
    answered = _rendered(tokenizer, answers, add_generation_prompt=False)
    return [
        whole[: next((i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), len(prompt))]
        for prompt, whole in zip(asked, answered, strict=True)
    ]


def prompt_ends(tokenizer: Any, prompts: Sequence[str]) -> list[list[list[int]]]:
    """Token ids up to each place where answers begin: `user_prompts`, and `trained_prompts` where these differ."""
    asked = user_prompts(tokenizer, prompts)
    others = trained_prompts(tokenizer, prompts)
    return [asked] if others == asked else [asked, others]


def dialogue_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a user's prompt for a model that knows no chat format: a dialogue as plain text (C8.1)."""
    return _plain(tokenizer, f"User: {prompt}\n\nAssistant: ")


def _dialogue(*turns: str) -> Messages:
    """What a user says, and perhaps what is answered."""
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turns, strict=False)]


def _prompts(tokenizer: Any, conversations: Sequence[Messages]) -> list[list[int]]:
    require_usable(tokenizer)
    if not conversations:
        return []
    if not has_chat_template(tokenizer):
        return [_plain(tokenizer, "".join(f"{one['content']}\n" for one in each)) for each in conversations]
    # Models that can think aloud first are asked not to; other templates ignore it.
    return _rendered(tokenizer, conversations, enable_thinking=False)


def _plain(tokenizer: Any, text: str) -> list[int]:
    ids = list(tokenizer(text)["input_ids"])
    # A tokenizer may close its input with an end-of-sequence token, after which no answer would follow.
    return ids[:-1] if ids[-1:] == [getattr(tokenizer, "eos_token_id", None)] else ids


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer knows its model's chat format."""
    return bool(getattr(tokenizer, "chat_template", None))


def warn_without_chat_template(tokenizer: Any) -> None:
    """Say that prompts will be plain text, which is hardly what the model was aligned in.

    Warns:
        UserWarning: The tokenizer has no chat template.
    """
    if not has_chat_template(tokenizer):
        warnings.warn(
            "PACT: the tokenizer has no chat template, so the model is asked in plain text. Set "
            "`tokenizer.chat_template`, in Axolotl the outermost `chat_template`, to the one that it was aligned and "
            "your data is written in.",
            stacklevel=2,
        )


def _rendered(tokenizer: Any, conversations: Sequence[Messages], **settings: Any) -> list[list[int]]:
    """Token ids of conversations; by default up to where the next answer begins.

    Args:
        tokenizer: Has a chat template.
        conversations: Any number.
        settings: For the template.

    Raises:
        ConfigError: The template refuses them, or leaves the prompts out.
    """
    texts, refusal = None, None
    # Templates of models that see may take no other content than a list of parts.
    for in_parts in (False, True):
        try:
            texts = _texts(tokenizer, conversations, in_parts, settings)
        except Exception as error:  # templates raise what they like, such as for a missing system message
            refusal = refusal or error
        else:
            if any(map(_holds_prompt, texts, conversations)):
                return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    raise ConfigError(
        f"the chat template refuses a user's prompt ({refusal})"
        if refusal
        else "the chat template leaves the user's prompt out, as text and as a list of parts",
        key="tokenizer.chat_template",
        value=getattr(tokenizer, "name_or_path", None) or None,
        remedy="Set `tokenizer.chat_template` to one that takes a conversation which begins with a user's message.",
    ) from refusal


def _holds_prompt(text: str, messages: Messages) -> bool:
    """Whether a conversation as text holds what its user says; true where there is no user in it."""
    said = [one["content"].strip() for one in messages if one["role"] == "user"]
    return not said or any(one in text for one in said)


def _texts(
    tokenizer: Any, conversations: Sequence[Messages], in_parts: bool, settings: dict[str, Any]
) -> list[str]:
    given: Sequence[Any] = conversations
    if in_parts:
        given = [
            [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
            for messages in conversations
        ]
    settings = {"add_generation_prompt": True, **settings, **_undated(tokenizer.chat_template)}
    texts: list[str] = tokenizer.apply_chat_template(given, tokenize=False, **settings)
    return texts


def _undated(template: Any) -> dict[str, str]:
    """The chat template with a fixed date, if it gives today's: answers are kept, and used on other days."""
    if not isinstance(template, str) or not _TODAY.search(template):
        return {}
    return {"chat_template": _TODAY.sub(lambda found: f"'{_DATE.strftime(found[2])}'", template)}
