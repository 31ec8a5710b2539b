"""Operations and bytes of a step, counted without a GPU and without the weights: tensors that have a shape and no data.

The decoder's passes and the constraint are run by their own code on torch's `meta` device under torch's FLOP counter;
the task's head is a formula (`head_flops`). tests/benchmarks/test_benchmarks.py compares both with the counter over
real steps of the real trainers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.allocations import Allocations
from benchmarks.settings import PLAIN, Mode, Settings
from benchmarks.shapes import build_model, lora, response_length
from pact_plugin.config import PublishedSettings
from pact_plugin.data.documents import documents_of, full_context, prompt_free
from pact_plugin.data.positions import IGNORED, positions_of
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.head import LanguageHead, language_head
from pact_plugin.terms.promptfree import gate_end

HEADER = 3
"""Tokens before a prompt-free response, as `Mode.config` sets it."""
ANCHOR = (25, 4)
"""Tokens read and positions constrained of an anchor: the bundled prompts' mean in SmolLM2's chat format without a
system message, and a whole answer."""


@dataclass(frozen=True)
class Count:
    """One kind of step. FLOPs are 2 for each multiplication and addition, attention counted without its causal half."""

    flops: int
    extra_flops: int
    """Of the constraint, beside the plain step."""
    held_bytes: int
    """What the reference holds all the time: copied parameters or a second model."""
    passing_bytes: int
    """Peak of what the constraint allocates while it runs, reference and backward pass included."""

    @property
    def ratio(self) -> float:
        """FLOPs to those of the plain step."""
        return self.flops / (self.flops - self.extra_flops)


def count(settings: Settings, *, every_position: bool = False) -> dict[str, Count]:
    """Every kind of step of some settings.

    Args:
        settings: Shape, training, loss, ways to constrain, `dtype`.
        every_position: Whether TRL's head reads every position, as it does without Triton; else those that are trained.
    """
    shape = settings.sizes
    dtype = getattr(torch, settings.dtype)
    model = build_model(shape, dtype=dtype, device="meta")
    full = settings.train == "full"
    trained = model if full else lora(model, settings.rank)
    head = language_head(trained)
    forward, backward = _decoder_pass(head, shape.batch, shape.length, dtype, grad=True)
    answer = response_length(shape.length, settings.response_share)
    positions = shape.batch * (min(answer, shape.length - 1))
    scored = shape.batch * (shape.length - 1) if every_position else positions
    if settings.loss == "full":
        task = head_flops(shape.batch * shape.length, shape.hidden_size, shape.vocab_size, trained=full)
    else:
        task = head_flops(scored, shape.hidden_size, shape.vocab_size, trained=full, recompute=True)
    plain = forward + backward + task
    kinds = {PLAIN: Count(plain, 0, 0, 0)}
    for name in settings.modes:
        mode = Mode.parse(name)
        extra, passing = _constraint(mode, settings, trained, head, dtype)
        held = _held(mode, trained, settings, dtype)
        kinds[name] = Count(plain + extra, extra, held, passing)
    return kinds


def head_flops(
    positions: int, hidden_size: int, vocab_size: int, *, trained: bool, recompute: bool = False
) -> int:
    """Of projecting positions on the vocabulary, forward and backward.

    2·N·d·V for the logits, as much for the gradient of the hidden states, for that of a head in training, and for the
    logits once more where they are recomputed.
    """
    return 2 * positions * hidden_size * vocab_size * (2 + trained + recompute)


def _decoder_pass(
    head: LanguageHead, rows: int, length: int, dtype: torch.dtype, *, grad: bool
) -> tuple[int, int]:
    """FLOPs forward and backward."""
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    mask = torch.zeros(
        1, 1, length, length, dtype=dtype, device="meta"
    )  # given whole, as it cannot be looked at
    with FlopCounterMode(display=False) as forward, torch.set_grad_enabled(grad):
        hidden = head.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    if not grad:
        return forward.get_total_flops(), 0
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def _constraint(
    mode: Mode, settings: Settings, model: Any, head: LanguageHead, dtype: torch.dtype
) -> tuple[int, int]:
    """FLOPs, and the peak of bytes allocated."""
    shape = settings.sizes
    labels = torch.full((shape.batch, shape.length), IGNORED)
    labels[:, shape.length - response_length(shape.length, settings.response_share) :] = 1
    host = {"labels": labels, "input_ids": torch.ones_like(labels)}
    positions = positions_of(host, mode.first_n)
    documents = documents_of(host, positions)
    published = mode.objective == "published"
    runs, passing = 0, 0
    if mode.reference != "stored":
        lengths = [shape.length]
        if mode.first_n is not None:
            lengths = [len(full_context(documents[0]).tokens)]
        if published:
            (behind,) = prompt_free(documents[0], range(HEADER), _gate_end())
            lengths.append(len(behind.tokens))
        with _aligned(mode, model, settings, dtype) as reference, Allocations() as allocations:
            for length in lengths:
                runs += _decoder_pass(reference, shape.batch, length, dtype, grad=False)[0]
        passing = allocations.peak
    if mode.anchors:
        with FlopCounterMode(display=False) as counter:
            made = replace(mode, reference="stored")  # once, before training
            _objective(made, settings, head, mode.anchors * ANCHOR[1], 0, dtype, beside=False).backward()
        runs += counter.get_total_flops()
        runs += sum(_decoder_pass(head, mode.anchors, ANCHOR[0], dtype, grad=True))
    opened = int((positions.index < _gate_end()).sum())
    model.zero_grad()  # meta cannot add a sparse gradient to what is there
    with FlopCounterMode(display=False) as counter, Allocations() as allocations:
        _objective(mode, settings, head, len(positions), opened, dtype, beside=True).backward()
    return runs + counter.get_total_flops(), max(passing, allocations.peak)


def _objective(
    mode: Mode,
    settings: Settings,
    head: LanguageHead,
    count: int,
    opened: int,
    dtype: torch.dtype,
    *,
    beside: bool,
) -> Tensor:
    """The constraint from hidden states on.

    Args:
        mode: Its kind.
        settings: Shape and number of safety tokens.
        head: The model in training.
        count: Positions.
        opened: Those of them that are read without the prompt.
        dtype: Of the hidden states.
        beside: Whether the task loss has the log-probabilities of the labels.
    """
    width, tokens = settings.sizes.hidden_size, settings.tokens
    states = torch.zeros(count, width, dtype=dtype, device="meta", requires_grad=True)
    ids, labels = (torch.zeros(size, dtype=torch.long, device="meta") for size in (tokens, count))
    values = torch.zeros(count, tokens, device="meta")
    if mode.objective == "published":
        if mode.reference != "stored":
            with torch.no_grad():
                for size in (count, opened):
                    head.safety_logits(states[:size].detach(), ids)
        # The divergence multiplies no matrices, and looks at the weights' values, which are not there.
        return head.safety_logits(states, ids).sum()
    log_rest = torch.zeros(count, device="meta")
    if mode.reference != "stored":
        with torch.no_grad():
            read = head.readout(states.detach(), ids, labels)
        values, log_rest = read.logprobs, read.log_rest
    if beside:
        given = torch.zeros(count, device="meta", requires_grad=True)
        logprobs = head.beside(states, ids, labels, given)
        return confidence_divergence(logprobs, values, None, log_rest).sum() + given.sum()
    read = head.readout(states, ids, labels)
    return confidence_divergence(read.logprobs, values, read.log_rest, log_rest).sum() + read.label.sum()


@contextmanager
def _aligned(mode: Mode, model: Any, settings: Settings, dtype: torch.dtype) -> Iterator[LanguageHead]:
    """The reference's decoder."""
    if mode.reference == "adapter_off":
        with model.disable_adapter():
            yield language_head(model)
    elif mode.reference == "frozen_model":
        yield language_head(build_model(settings.sizes, dtype=dtype, device="meta"))
    else:
        yield language_head(model)


def _held(mode: Mode, model: Any, settings: Settings, dtype: torch.dtype) -> int:
    """Bytes of the reference's own parameters."""
    if mode.reference == "frozen_copy":
        return _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
    if mode.reference == "frozen_model":
        return _bytes(build_model(settings.sizes, dtype=dtype, device="meta").parameters())
    return 0


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _gate_end() -> int:
    settings = PublishedSettings()
    return gate_end(settings.prefix, settings.decay, settings.boost)
