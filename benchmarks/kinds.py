"""A way to constrain without data: what a step, and reading the data, cost by the terms' own code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.allocations import Allocations
from benchmarks.costs import AnchorRows, Count
from benchmarks.meta import build, decoder_pass, head_flops, inputs
from benchmarks.settings import Mode, Settings
from benchmarks.shapes import build_tokenizer, response_length, safety_tokens
from pact_plugin import PactConfig, SafetyTokens
from pact_plugin.data.documents import PLACEHOLDER, Document, behind, documents_of, full_context
from pact_plugin.data.positions import IGNORE_INDEX, ResponsePositions, positions_of
from pact_plugin.data.view import View
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.head import language_head
from pact_plugin.model.linear import LinearFunction
from pact_plugin.reference.columns import Columns, furthest, read_columns
from pact_plugin.reference.probe import Probe
from pact_plugin.reference.source import Source, build_source
from pact_plugin.terms.base import Contribution, MicroBatch, Term
from pact_plugin.terms.build import data_terms
from pact_plugin.terms.published import PublishedTerm
from pact_plugin.terms.student import Reading, Student


class Kind:
    """A way to constrain, on a model without data.

    Args:
        mode: The way.
        settings: What is counted.
        model: In training.
    """

    def __init__(self, mode: Mode, settings: Settings, model: Any) -> None:
        self._mode, self._settings, self._model = mode, settings, model
        tokenizer, tokens = _tokens(settings.sizes.vocab_size, settings.tokens)
        config = mode.config(tokens, Path())
        self._ids = torch.tensor(tokens.positive.ids, device="meta")
        self._top_k = config.anchors.top_k if config.anchors else 0
        self._head, self._chunk = language_head(model), config.advanced.chunk_size
        self._student = Student(model, self._head, tokens.positive.ids, self._chunk)
        probe = Probe(LinearFunction(torch.zeros(settings.sizes.hidden_size), 0.0), 0.5)
        self._terms: Sequence[Term] = _terms(config, tokens, probe, tokenizer)
        self._columns = tuple(dict.fromkeys(one for term in self._terms for one in term.columns))

    def count(self, plain: int, anchors: AnchorRows, eased: int) -> Count:
        """The whole.

        Args:
            plain: FLOPs of the plain step.
            anchors: Of a step.
            eased: Responses of a step that are eased.
        """
        in_step = bool(self._columns) and self._mode.where != "table"
        runs, held, passing = 0, 0, 0
        if in_step:
            source = self._source()
            held = source.extra_bytes
            with Allocations() as allocations:
                runs = self._reference(source, whole=furthest(self._columns) is None)
            passing = allocations.peak
        of_anchors = self._anchors(anchors) if "anchors" in self._mode.terms else 0
        self._model.zero_grad()
        with Allocations() as allocations:
            of_terms = self._data_terms(eased)
        extra = runs + of_anchors + of_terms
        return Count(
            flops=plain + extra,
            extra_flops=extra,
            anchor_flops=of_anchors,
            reading_flops=self._reading() if self._columns and not in_step else 0,
            held_bytes=held,
            passing_bytes=max(passing, allocations.peak),
        )

    def _source(self) -> Source:
        where, settings = self._mode.where, self._settings
        if where == "model":
            return build_source("model", self._model, build(settings))
        if settings.train == "lora":
            return build_source("adapter_off", self._model)
        return build_source("copy" if where == "step" else "itself", self._model)

    def _reference(self, source: Source, *, whole: bool) -> int:
        """FLOPs of the aligned model over the step's batch; `whole` where it repeats the rows of the batch."""
        shape = self._settings.sizes
        documents, _, _ = self._batch()
        document, rows = (documents[0], shape.batch) if documents else (PLACEHOLDER, 1)
        contexts = {one.behind: [c for c in self._columns if c.behind == one.behind] for one in self._columns}
        with FlopCounterMode(display=False) as counter, source.session():
            for header, columns in contexts.items():
                row = full_context(document)
                if header is not None:
                    (row,) = behind(document, header, furthest(columns))
                length = shape.length if header is None and whole else len(row.tokens)
                source.hidden((), inputs(rows, length, source.head))
                read_columns(source, self._states(rows * len(row.columns)), columns, self._chunk)
        return counter.get_total_flops()

    def _reading(self) -> int:
        """FLOPs of filling the table with the step's documents, the logits of one position of each included."""
        shape = self._settings.sizes
        if not self._batch()[0]:  # without a prompt there is no position that easing asks about
            return 0
        contexts = len({one.behind for one in self._columns})
        last = head_flops(shape.batch * contexts, shape.hidden_size, shape.vocab_size, trained=False) // 2
        return self._reference(self._source(), whole=False) + last

    def _data_terms(self, eased: int) -> int:
        """FLOPs of the terms at the data's positions: the head is read there, forward and backward."""
        if not self._columns:
            return 0
        shape = self._settings.sizes
        _, host, positions = self._batch()
        hidden = self._states(shape.batch, shape.length).requires_grad_()
        view = View(
            hidden=hidden,
            args=(),
            kwargs={},
            positions=positions.to(hidden.device),
            host=host,
            host_positions=positions,
        )
        aligned = {
            one: torch.zeros(_within(positions, one), one.width, device="cpu" if one.on_host else "meta")
            for one in self._columns
        }
        for one in aligned.values():
            if one.device.type == "cpu":
                one[:eased] = 1  # log odds above 0: harmful
        batch = MicroBatch(view, Reading(self._student, view), aligned)
        with FlopCounterMode(display=False) as counter:
            parts = [term(batch) for term in self._terms]
            torch.stack([part.penalty + part.relief for part in parts]).sum().backward()
        return counter.get_total_flops()

    def _anchors(self, anchors: AnchorRows) -> int:
        """FLOPs of a step's anchors: through the decoder and the head, forward and backward."""
        count = anchors.held
        # A frozen head multiplies its rows of all of them, as if they were safety tokens.
        tokens = anchors.buckets(len(self._ids), self._top_k, self._settings.sizes.vocab_size)
        ids = torch.zeros(tokens, dtype=torch.long, device="meta")
        states = self._states(count).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            read = self._head.readout(states, ids, chunk_size=self._chunk)
            aligned = torch.zeros(count, len(ids), device="meta"), torch.zeros(count, device="meta")
            confidence_divergence(read.logprobs, aligned[0], read.log_rest, aligned[1]).mean().backward()
        return counter.get_total_flops() + sum(decoder_pass(self._head, anchors.rows, anchors.length))

    def _batch(self) -> tuple[list[Document], dict[str, Tensor], ResponsePositions]:
        """The documents of a step, the batch on the host, and the positions that any term looks at."""
        shape = self._settings.sizes
        labels = torch.full((shape.batch, shape.length), IGNORE_INDEX)
        labels[:, shape.length - response_length(shape.length, self._settings.response_share) :] = 1
        host = {"labels": labels, "input_ids": torch.ones_like(labels)}
        positions = positions_of(host, furthest(self._terms))
        return documents_of(host, positions.among(furthest(self._columns))), host, positions

    def _states(self, *sizes: int) -> Tensor:
        width, dtype = self._settings.sizes.hidden_size, getattr(torch, self._settings.dtype)
        return torch.zeros(*sizes, width, dtype=dtype, device="meta")


class _Published:
    """The published objective without the divergence, which multiplies no matrices and looks at numbers.

    Args:
        term: The objective.
        ids: All of the safety tokens.
    """

    name = "published"
    metrics: tuple[str, ...] = ()

    def __init__(self, term: PublishedTerm, ids: Sequence[int]) -> None:
        self.columns, self.first = term.columns, term.first
        self._ids = torch.tensor(ids, device="meta")

    def __call__(self, batch: MicroBatch) -> Contribution:
        """The logits of the model in training."""
        return Contribution(penalty=batch.student.logits(self._ids).sum())


@lru_cache
def _tokens(vocab_size: int, number: int) -> tuple[Any, SafetyTokens]:
    tokenizer = build_tokenizer(vocab_size)
    return tokenizer, safety_tokens(tokenizer, number)


def _terms(config: PactConfig, tokens: SafetyTokens, probe: Probe, tokenizer: Any) -> list[Any]:
    found = data_terms(config, tokens, probe, tokenizer)
    return [_Published(term, tokens.ids) if isinstance(term, PublishedTerm) else term for term in found]


def _within(positions: ResponsePositions, columns: Columns) -> int:
    first = columns.first
    return len(positions) if first is None else int((positions.index < first).sum())
