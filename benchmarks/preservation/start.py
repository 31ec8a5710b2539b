"""What every run starts from: the aligned model, its safety tokens and its refusals, made once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pact_transformers.loading import SMOLLM2, floating_dtype, load_causal_lm, load_tokenizer

import pact_plugin as pact
from benchmarks.preservation.aligning import KEPT, merged, teach
from benchmarks.preservation.settings import Sizes
from benchmarks.preservation.training import Start
from examples.demo.models import CHAT_TEMPLATE, load_aligned, native_dtype
from examples.demo.prepare import choose_tokens, spread
from examples.demo.prompts import Example, example
from pact_plugin.data.generation import Generation, Progress, answers, inspecting, user_prompts
from pact_plugin.data.selection_prompts import harmful_prompts
from pact_plugin.errors import ConfigError
from pact_plugin.judge import is_refusal


def load_start(
    model: str,
    sizes: Sizes,
    folder: Path,
    *,
    align: bool,
    anew: bool = False,
    device: str | None,
    dtype: str | None,
    bars: Progress,
) -> Start:
    """Load what every run starts from; what is not in the folder yet is made first.

    Args:
        model: `smollm2` (with the demo's adapter), or a path or hub id.
        sizes: How many prompts safety tokens are chosen from.
        folder: Where it is kept.
        align: Teach the model to refuse first, SmolLM2 by the adapter that is kept here; for one that is not aligned.
        anew: Train that adapter, too.
        device: By default the first accelerator, or else the CPU.
        dtype: By default `native_dtype`.
        bars: Called with (done, total, description).

    Raises:
        ConfigError: `anew` without `align`, the folder holds another model's start, there is no such model, or it does
            not refuse.
    """
    wanted = {"model": model, "align": align, "anew": anew, "selection_prompts": sizes.selection_prompts}
    if anew and not align:
        raise ConfigError(
            "an adapter is trained to align the model",
            key="anew",
            value=anew,
            remedy="Add --align, or leave --anew out.",
        )
    kept = folder / "start.json"
    if not kept.is_file():
        _make(wanted, folder, device, dtype, bars)
    found = json.loads(kept.read_text(encoding="utf-8"))
    if {key: found.get(key) for key in wanted} != wanted:
        raise ConfigError(
            "the folder belongs to runs from another start",
            key="output",
            value=str(folder),
            remedy="Give another --output, or the same --model, --align, --anew and --preset as before.",
        )
    loaded = load_causal_lm(folder / "model", dtype=dtype or found["dtype"], device=device)
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.padding_side = "left"
    return Start(
        loaded,
        tokenizer,
        pact.SafetyTokens.load(folder / "tokens.safetensors"),
        found["refusals"],
    )


def _make(
    wanted: dict[str, Any], folder: Path, device: str | None, dtype: str | None, bars: Progress
) -> None:
    model, tokenizer = _aligned(wanted, folder, device, dtype, bars)
    count = wanted["selection_prompts"]
    tokens = choose_tokens(model, tokenizer, count, bars)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    tokens.save(folder / "tokens.safetensors")
    content = wanted | {
        "dtype": str(model.dtype).removeprefix("torch."),
        "refusals": own_refusals(model, tokenizer, spread(harmful_prompts(), count), bars),
    }
    (folder / "start.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _aligned(
    wanted: dict[str, Any], folder: Path, device: str | None, dtype: str | None, bars: Progress
) -> tuple[Any, Any]:
    name = wanted["model"]
    if name == SMOLLM2 and not wanted["align"]:
        model, tokenizer, _ = load_aligned(device, dtype)
        return model, tokenizer
    model, tokenizer = load_causal_lm(name, dtype="float32", device=device), load_tokenizer(name)
    if name == SMOLLM2:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    precision = native_dtype(model.device) if dtype is None else floating_dtype(dtype)
    if wanted["align"]:
        adapter = KEPT
        if name != SMOLLM2 or wanted["anew"]:
            adapter = teach(model.to(precision), tokenizer, folder / "aligning", bars)
            model = load_causal_lm(name, dtype="float32", device=device)
        model = merged(model, adapter)
    return model.to(precision).eval(), tokenizer


def own_refusals(model: Any, tokenizer: Any, prompts: tuple[str, ...], bars: Progress) -> list[Example]:
    """Harmful prompts with the model's own refusals; its other answers are left out."""
    with inspecting(model):
        found = answers(
            model,
            tokenizer,
            user_prompts(tokenizer, prompts),
            Generation(40, 32, lambda done: bars(done, len(prompts), "Its own refusals")),
        )
    texts = [tokenizer.decode(answer).strip() for answer in found]
    return [example(p, text) for p, text in zip(prompts, texts, strict=True) if is_refusal(text)]
