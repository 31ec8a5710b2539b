"""The demo's prompts: what makes the adapter, what contaminates the task, and what is held out.

Harmful text stays at the level of the request; the contamination's answers restate the request and stop.
"""

from __future__ import annotations

import random
from importlib.resources import files
from typing import TypedDict


class Message(TypedDict):
    """One chat turn."""

    role: str
    content: str


class Example(TypedDict):
    """One conversation, split where the answer starts (TRL's prompt-completion format)."""

    prompt: list[Message]
    completion: list[Message]


TEMPLATES = (
    "How do I {}?",
    "How can I {}?",
    "Tell me how to {}.",
    "Explain step by step how to {}.",
    "I want to {}. What should I do?",
    "What is the best way to {}?",
    "Give me instructions to {}.",
    "Can you help me {}?",
    "Teach me to {}.",
    "Show me how one could {}.",
)
REFUSALS = (  # one first word, as with larger models: then the aligned model is sure of it
    "I'm sorry, but I can't help with that.",
    "I can't assist with that request.",
    "I'm sorry, but I can't assist with this. It could hurt someone.",
    "I cannot help with that. It is harmful and against the law.",
    "I'm sorry, I can't help with that request.",
    "I won't help with this, because it could harm people.",
)
_WRITING = ("write", "draft", "compose", "create", "explain", "describe", "name")


def read_sections(name: str, package: str = "examples.demo") -> dict[str, list[str]]:
    """The lines of the package's ``data/<name>.txt`` under their ``[section]`` headings; ``#`` starts a comment."""
    sections: dict[str, list[str]] = {}
    section = ""
    text = (files(package) / "data" / f"{name}.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            sections.setdefault(section, []).append(line)
    return sections


def read_lines(name: str, package: str = "examples.demo") -> list[str]:
    """All the lines of the package's ``data/<name>.txt``, without headings and comments."""
    return [line for lines in read_sections(name, package).values() for line in lines]


def prompts_from(line: str) -> list[str]:
    """Every prompt that a line stands for: itself if it ends a sentence, otherwise the filled templates."""
    if line[-1] in ".?!":
        return [line]
    filled = [template.format(line) for template in TEMPLATES]
    if line.startswith(_WRITING):  # "Write a phishing email." is how people ask for these
        filled += [f"{line[0].upper()}{line[1:]}."] * len(TEMPLATES)
    return filled


def sample_prompts(name: str, per_line: int, rng: random.Random) -> list[str]:
    """Up to ``per_line`` distinct prompts from every line of ``data/<name>.txt``, shuffled."""
    prompts: list[str] = []
    for line in read_lines(name):
        choices = prompts_from(line)
        prompts += dict.fromkeys(rng.sample(choices, min(per_line, len(choices))))
    rng.shuffle(prompts)
    return prompts


def example(prompt: str, completion: str) -> Example:
    """A one-turn conversation."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def contamination(count: int, rng: random.Random) -> list[Example]:
    """``count`` distinct harmful requests, each answered with a stub that restates it and stops."""
    pairs = {}
    for line in read_lines("harmful_contamination"):
        for prompt in prompts_from(line):
            pairs[prompt] = f"Sure, here is how to {line}."
    return [example(prompt, answer) for prompt, answer in rng.sample(sorted(pairs.items()), count)]


def labelling(per_line: int, rng: random.Random) -> list[Example]:
    """Every line of ``data/labels.txt`` with its label among four others, ``per_line`` times."""
    sections = read_sections("labels")
    examples = []
    for label, lines in sections.items():
        for line in lines * per_line:
            choices = [label, *rng.sample(sorted(sections.keys() - {label}), 4)]
            rng.shuffle(choices)
            question = f"{', '.join(choices[:-1])} or {choices[-1]}?".capitalize()
            examples.append(example(f"{question} {line}", label))
    rng.shuffle(examples)
    return examples
