"""Filling a table: the aligned model reads every document once, before the first step."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import nn
from tqdm.auto import tqdm

from pact_plugin.data.documents import PLACEHOLDER, Document, HostBatch, documents_of, require_text
from pact_plugin.data.positions import positions_of
from pact_plugin.errors import StoreError
from pact_plugin.model.ranks import all_gather_object, broadcast_object, is_distributed, is_sharded, rank
from pact_plugin.reference.columns import furthest
from pact_plugin.reference.passes import Passes, caller, reshard
from pact_plugin.reference.table import Table

logger = logging.getLogger("pact_plugin")

_WINDOW = 64
"""Passes whose documents are sorted by length together."""


def unseen(table: Table, batches: Iterable[Mapping[str, Any]]) -> Iterator[list[Document]]:
    """For each batch, the documents that the table lacks; no document is given twice.

    Raises:
        StoreError: A batch holds more than token ids.
    """
    met: set[bytes] = set()
    for batch in batches:
        require_text(batch)
        host = HostBatch(batch).tensors()
        documents = documents_of(host, positions_of(host, furthest(table.columns)))
        new = {d.key: d for d in table.lacks(documents) if d.key not in met}
        met.update(new)
        yield list(new.values())


def fill(
    table: Table,
    batches: Iterable[Mapping[str, Any]],
    passes: Passes,
    model: nn.Module,
    tokens_per_pass: int,
    progress: bool,
) -> None:
    """Write what the model predicts for every document of some batches; to be called by every rank, within a session.

    Args:
        table: Where to.
        batches: This rank's part of the data, as training sees it; documents are batched anew, by length.
        passes: What to compute.
        model: What computes the final hidden states.
        tokens_per_pass: Tokens in one forward pass, padding included.
        progress: Whether to show a progress bar.

    Raises:
        StoreError: A batch holds more than token ids, another run is filling the same table, or the ranks see several.
        NonFiniteError: The model predicts NaN.
    """
    _create(table)
    call = caller(model, passes.source.head)
    sharded = is_sharded(model)
    total = length_hint(batches) or None
    estimate = _Estimate(table, total)
    bar = tqdm(unseen(table, batches), "PACT reference", total, unit=" batches", disable=not progress)
    windows = _windows(bar, tokens_per_pass)
    with table.writer(rank()) as writer:
        while True:
            number, window = next(windows, (0, None))
            groups = by_length(window or [], tokens_per_pass)
            rounds, over = len(groups), window is None
            if sharded:  # every rank takes part in gathering a shard, for as long as one has documents
                told = all_gather_object((rounds, over))
                rounds, over = max(many for many, _ in told), all(done for _, done in told)
            if over:
                break
            for group in groups:
                encoded = table.encoded(zip(group, passes.of_documents(group, call), strict=True))
                try:
                    writer.put(encoded)
                except OSError as error:
                    raise unwritable(table.folder, error) from error
                estimate.add(group)
            for _ in range(rounds - len(groups)):
                passes.of_documents(groups[0] if groups else [PLACEHOLDER], call)
            estimate.show(number)
    reshard(model)
    all_gather_object(None)
    table.refresh()
    if rank() == 0:
        logger.info(
            "PACT reference: %d documents, %.1f MiB in %s",
            table.documents,
            table.bytes / 2**20,
            table.folder,
        )


def _windows(batches: Iterable[list[Document]], tokens_per_pass: int) -> Iterator[tuple[int, list[Document]]]:
    """Documents that are sorted together, and the number of batches until then.

    Those of a first pass are given at once, so that what is wrong shows early; then those of many.
    """
    window: list[Document] = []
    number, tokens, most = 0, 0, tokens_per_pass
    for number, new in enumerate(batches, 1):
        window += new
        tokens += sum(map(_length, new))
        if tokens >= most:
            yield number, window
            window, tokens, most = [], 0, _WINDOW * tokens_per_pass
    if window:
        yield number, window


def unwritable(folder: Path, error: OSError) -> StoreError:
    """What to raise where a table cannot be written."""
    return StoreError(
        f"it cannot be written ({error})",
        key="advanced.store",
        value=str(folder),
        remedy="Name a folder that can be written and has room for it.",
    )


def by_length(documents: Sequence[Document], tokens_per_pass: int) -> list[list[Document]]:
    """Groups of documents of similar length, padded within a number of tokens; a longer one is a group by itself."""
    groups: list[list[Document]] = []
    for document in sorted(documents, key=_length, reverse=True):
        if groups and (len(groups[-1]) + 1) * _length(groups[-1][0]) <= tokens_per_pass:
            groups[-1].append(document)
        else:
            groups.append([document])
    return groups


def _create(table: Table) -> None:
    """Rank 0 creates the table; its error is raised on every rank."""
    problem: StoreError | None = None
    if rank() == 0:
        try:
            table.create()
        except StoreError as error:
            problem = error
        except OSError as error:
            problem = unwritable(table.folder, error)
    problem = broadcast_object(problem)
    if problem is not None:
        raise problem
    if is_distributed():
        _require_one_folder(table)
    table.refresh()


def _require_one_folder(table: Table) -> None:
    """Refuse a folder that the ranks do not share, before all data is read for nothing: each looks for one file."""
    name = broadcast_object(f"{uuid4().hex}.seen")
    mark = table.folder / name
    if rank() == 0:
        mark.touch()
    all_gather_object(None)
    seen = all_gather_object(mark.is_file())
    if rank() == 0:
        mark.unlink()
    if not all(seen):
        raise StoreError(
            "the ranks do not see the same files",
            key="advanced.store",
            value=str(table.folder),
            remedy="Name a folder on a file system that all of them share, or hold anchors alone (`easing: false`): "
            "they need no table.",
        )


def _length(document: Document) -> int:
    return len(document.tokens)


class _Estimate:
    """Size and time of the whole, from the first pass."""

    def __init__(self, table: Table, total: int | None) -> None:
        self._pending = True
        self._table, self._total = table, total
        self._began, self._bytes = time.perf_counter(), 0

    def add(self, group: Sequence[Document]) -> None:
        self._bytes += sum(self._table.bytes_of(document) for document in group)

    def show(self, number: int) -> None:
        """After `number` batches."""
        if not self._pending or not number or rank() != 0:
            return
        self._pending = False
        if not self._total or number >= self._total:
            return
        size = int(self._bytes * self._total / number)
        minutes = (time.perf_counter() - self._began) * self._total / number / 60
        free = shutil.disk_usage(self._table.folder).free
        logger.info(
            "PACT reference: filling %s with about %.1f MiB from each rank, in about %.1f minutes (%.1f GiB are free)",
            self._table.folder,
            size / 2**20,
            minutes,
            free / 2**30,
        )
        if size > free:
            raise StoreError(
                f"it needs about {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
                key="advanced.store",
                value=str(self._table.folder),
                remedy="Name another folder, or hold anchors alone (`easing: false`): they need no table. Where "
                "answers are held, fewer of their tokens (`first: 16`) take less, as do fewer safety tokens.",
            )
