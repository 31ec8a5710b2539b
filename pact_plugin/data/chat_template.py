"""Conversations as a model's chat template writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pact_plugin.errors import ConfigError

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DATE = datetime(2024, 7, 26)
"""The date that Llama's templates give where they know none."""

Turns = tuple[str, ...]
"""What a user says and what is answered, by turns."""


def rendered(tokenizer: Any, conversations: Sequence[Turns], **settings: Any) -> list[list[int]]:
    """Token ids of conversations; of those that end with a user's prompt, up to where its answer begins.

    Args:
        tokenizer: Has a chat template.
        conversations: All of as many turns.
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
            if any(turns[0].strip() in text for turns, text in zip(conversations, texts, strict=True)):
                return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    raise ConfigError(
        f"the chat template refuses a user's prompt ({refusal})"
        if refusal
        else "the chat template leaves the user's prompt out, as text and as a list of parts",
        key="tokenizer.chat_template",
        value=getattr(tokenizer, "name_or_path", None) or None,
        remedy="Set `tokenizer.chat_template` to one that takes a conversation which begins with a user's message.",
    ) from refusal


def _texts(
    tokenizer: Any, conversations: Sequence[Turns], in_parts: bool, settings: dict[str, Any]
) -> list[str]:
    messages = [
        [
            {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
            for role, text in zip(("user", "assistant"), turns, strict=False)
        ]
        for turns in conversations
    ]
    texts: list[str] = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=len(conversations[0]) == 1,
        **settings,
        **_undated(tokenizer.chat_template),
    )
    return texts


def _undated(template: Any) -> dict[str, str]:
    """The chat template with a fixed date, if it gives today's: what was answered is kept for other days."""
    if not isinstance(template, str) or not _TODAY.search(template):
        return {}
    return {"chat_template": _TODAY.sub(lambda found: f"'{_DATE.strftime(found[2])}'", template)}
