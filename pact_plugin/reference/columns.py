"""What terms ask of the aligned model at each response position: columns of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pact_plugin.errors import NonFiniteError
from pact_plugin.model.linear import LinearFunction
from pact_plugin.model.ranks import chunks
from pact_plugin.model.readout import Tokens, TokensOfEach
from pact_plugin.reference.source import Source

ColumnKind = Literal["logprobs", "log_rest", "logits", "linear", "buckets"]


@dataclass(frozen=True)
class Columns:
    """Numbers asked at the response positions with t < `first`.

    Args:
        kind: `logprobs`, log p of each token, in nats, [K]; `log_rest`, that of all other tokens together; `logits`,
            [K], moved so that the largest of each position is 0; `linear`, a linear function of the final hidden state;
            `buckets`, see `Buckets`.
        ids: The K tokens that they are about; none for `linear`.
        first: First tokens of each response; None for all.
        behind: Tokens that each response is read behind, in place of its prompt; None for the whole context.
        linear: The function, for `linear`.
        top_k: Tokens of each position beside the K, for `buckets`.
    """

    kind: ColumnKind
    ids: tuple[int, ...]
    first: int | None = None
    behind: tuple[int, ...] | None = None
    linear: LinearFunction | None = None
    top_k: int = 0

    @property
    def width(self) -> int:
        """Numbers for each position of a table; it keeps no buckets."""
        assert self.kind != "buckets"
        return len(self.ids) if self.kind in ("logprobs", "logits") else 1

    @property
    def on_host(self) -> bool:
        """Whether the numbers stay on the host: those that decide where the head is read."""
        return self.kind == "linear"


Aligned = Mapping[Columns, Float[Tensor, "M W"]]
"""The numbers of each columns that were asked, at the positions that they are asked at; on the host if `on_host`."""


@dataclass(frozen=True)
class Buckets:
    """What a divergence compares at M positions: K tokens, the T likeliest others of each position, and the rest."""

    likeliest: Int[Tensor, "M T"]
    """The others."""
    logprobs: Float[Tensor, "M K+T"]
    """Of all of them, in nats."""
    log_rest: Float[Tensor, " M"]
    """Log-probability of every other token together."""

    def folded(self, held: Int[Tensor, " M"]) -> tuple[Float[Tensor, "M K+T"], Float[Tensor, " M"]]:
        """Log p of the first `held` tokens of each position, and log r with the others added to it."""
        beyond = torch.arange(self.logprobs.shape[1], device=held.device) >= held[:, None]
        others = self.logprobs.masked_fill(~beyond, -torch.inf)
        rest = torch.cat([others, self.log_rest[:, None]], 1).logsumexp(1)
        return self.logprobs.masked_fill(beyond, -torch.inf), rest

    def log_odds(self, count: int) -> Float[Tensor, " M"]:
        """Of the first `count` tokens together, in nats."""
        others = torch.cat([self.logprobs[:, count:], self.log_rest[:, None]], 1)
        return self.logprobs[:, :count].logsumexp(1) - others.logsumexp(1)

    def packed(self) -> Float[Tensor, "M W"]:
        """As one array of columns; token ids are exact in float32."""
        ids = self.likeliest.to(self.logprobs.dtype)
        return torch.cat([ids, self.logprobs, self.log_rest[:, None]], 1)

    @staticmethod
    def of(packed: Float[Tensor, "M W"], top_k: int) -> Buckets:
        """From such an array."""
        return Buckets(packed[:, :top_k].long(), packed[:, top_k:-1], packed[:, -1])


class Looks(Protocol):
    """Anything that looks at responses: a term, or the columns that one asks."""

    @property
    def first(self) -> int | None:
        """How many tokens at the start of each response. None: all."""
        ...


def furthest(looking: Sequence[Looks]) -> int | None:
    """The largest `first` among them. None: all tokens. 0: none."""
    ends = [one.first for one in looking]
    return None if None in ends else max((end for end in ends if end is not None), default=0)


def read_columns(
    source: Source, hidden: Float[Tensor, "N d"], columns: Sequence[Columns], chunk_size: int
) -> Aligned:
    """Columns of one context, all about the same positions; to be called within a session of the source.

    The projection on the vocabulary is run once for columns about the same tokens; for logits alone, not at all.
    """
    numbers: dict[Columns, Tensor] = {}
    for asked in columns:
        if asked.linear is not None:
            numbers[asked] = asked.linear(hidden)[:, None]
        elif asked.kind == "buckets":
            numbers[asked] = _buckets(source, hidden, asked, chunk_size).packed()
    plain = [asked for asked in columns if asked not in numbers]
    for ids in dict.fromkeys(asked.ids for asked in plain):
        about_these = [asked for asked in plain if asked.ids == ids]
        tokens = torch.tensor(ids, device=hidden.device)
        if any(asked.kind != "logits" for asked in about_these):
            readout = source.head.readout(hidden, tokens, chunk_size=chunk_size, project=source.project)
        for asked in about_these:
            if asked.kind == "logits":
                logits = source.safety_logits(hidden, tokens, chunk_size)
                numbers[asked] = logits - logits.amax(1, keepdim=True)
            else:
                values: Tensor = getattr(readout, asked.kind)
                numbers[asked] = values if values.ndim == 2 else values[:, None]
    return numbers


def _buckets(source: Source, hidden: Tensor, asked: Columns, chunk_size: int) -> Buckets:
    head, ids = source.head, torch.tensor(asked.ids, device=hidden.device)
    found = []
    for states in chunks(hidden, chunk_size, head.projection):
        others = head.logits(states, source.project).index_fill(1, ids, -torch.inf)
        found.append(others.topk(asked.top_k).indices)
    likeliest = torch.cat(found)
    tokens: Tokens = tokens_of_each(ids, likeliest) if asked.top_k else ids
    read = head.readout(hidden, tokens, chunk_size=chunk_size, project=source.project)
    return Buckets(likeliest, read.logprobs, read.log_rest)


def tokens_of_each(tokens: Int[Tensor, " K"], likeliest: Int[Tensor, "M T"]) -> TokensOfEach:
    """The tokens that are buckets at each of M positions: some at all of them, and others."""
    return TokensOfEach.of(torch.cat([tokens.expand(len(likeliest), -1), likeliest], 1))


def invalid(aligned: Aligned) -> Tensor | int:
    """How many numbers are NaN or infinite; -∞ is right for a token that a model masks (clause C7.3)."""
    return sum(((one.isnan() | (one == torch.inf)).sum() for one in aligned.values()), 0)


def not_finite() -> NonFiniteError:
    """The error of columns with `invalid` numbers."""
    return NonFiniteError(
        "NaN or infinity in the reference",
        key="reference",
        remedy="Check the aligned model's weights and precision: float16 overflows where bfloat16 does not.",
    )
