"""Safety tokens: which token ids, with which weights, for which tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pact_plugin.data.tokenizers import require_usable
from pact_plugin.errors import ConfigError, TokenFileError, TokenizerMismatchError
from pact_plugin.tokens import file as token_file

_CHOOSE = "Choose tokens for this model with `pact-plugin tokens select`."
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Tokenizer(Protocol):
    """What is asked of a tokenizer (a subset of transformers' interface)."""

    def get_vocab(self) -> dict[str, int]:
        """Every token string with its id, added tokens included."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that were added to the trained vocabulary."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> Any:
        """The token string of every id; None where there is none."""
        ...


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 (hex) of a tokenizer's trained vocabulary.

    Added tokens are left out, so that adding a padding token changes nothing. Hashed is the UTF-8 of the JSON
    object {token: id}, keys sorted, without spaces.

    Raises:
        ConfigError: The tokenizer is one of mistral-common.
    """
    require_usable(tokenizer)
    added = tokenizer.get_added_vocab()
    trained = {token: index for token, index in tokenizer.get_vocab().items() if token not in added}
    text = json.dumps(trained, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Some vocabularies hold lone surrogates, which strict UTF-8 refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class SafetyTokens:
    """K safety tokens of one tokenizer, with their weights (spec clauses C8 and C9).

    Attributes:
        ids: K distinct token ids.
        weights: K finite weights, at least one positive, rounded to float32; negative ones are allowed (the
            safety direction is signed).
        tokens: The tokenizer's own string of each id, such as `Ġcan`.
        vocab_size: Number of ids of the tokenizer that they were chosen with.
        fingerprint: That tokenizer's `tokenizer_fingerprint`.
        provenance: How they were chosen, as strings.

    Raises:
        ConfigError: Lengths differ, or an id or weight cannot be used.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    tokens: tuple[str, ...]
    vocab_size: int
    fingerprint: str
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_values(self.ids, self.weights, self.tokens, self.vocab_size)
        rounded = tuple(float(np.float32(weight)) for weight in self.weights)
        for name, value in (
            ("ids", tuple(map(int, self.ids))),
            ("weights", rounded),
            ("tokens", tuple(self.tokens)),
            ("provenance", dict(self.provenance)),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        weights: Sequence[float],
        provenance: Mapping[str, str] | None = None,
    ) -> SafetyTokens:
        """Safety tokens from token ids and weights.

        Raises:
            ConfigError: An id that the tokenizer does not have, a duplicate, lengths that differ, or weights
                that are not finite or of which none is positive.
        """
        size = max(tokenizer.get_vocab().values()) + 1
        _check_values(ids, weights, None, size)
        tokens = tokenizer.convert_ids_to_tokens([int(i) for i in ids])
        unused = [int(i) for i, token in zip(ids, tokens, strict=True) if token is None]
        if unused:
            raise ConfigError("no token has this id", key="ids", value=unused[0], remedy=_CHOOSE)
        return cls(
            ids=tuple(ids),
            weights=tuple(weights),
            tokens=tuple(tokens),
            vocab_size=size,
            fingerprint=tokenizer_fingerprint(tokenizer),
            provenance=provenance or {},
        )

    @property
    def positive(self) -> SafetyTokens:
        """The tokens with a positive weight: the set S of the confidence objective."""
        kept = [k for k, weight in enumerate(self.weights) if weight > 0]
        return replace(
            self,
            ids=tuple(self.ids[k] for k in kept),
            weights=tuple(self.weights[k] for k in kept),
            tokens=tuple(self.tokens[k] for k in kept),
        )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the ids (little-endian int64) and weights (float32), in order."""
        content = (
            np.asarray(self.ids, dtype="<i8").tobytes() + np.asarray(self.weights, dtype="<f4").tobytes()
        )
        return hashlib.sha256(content).hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What a receipt says of them."""
        return {"digest": self.digest, "count": len(self), "tokenizer": self.fingerprint}

    def check(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        """Make sure that these are tokens of `tokenizer`, and that a model's vocabulary holds them.

        Args:
            tokenizer: The tokenizer of the model that is to be trained.
            vocab_size: Number of logits of that model.

        Raises:
            TokenizerMismatchError: The tokens were chosen with another tokenizer.
            TokenFileError: An id has no logit in the model.
        """
        found = tokenizer_fingerprint(tokenizer)
        if found != self.fingerprint:
            raise TokenizerMismatchError(
                f"these tokens were chosen with another tokenizer (fingerprint {self.fingerprint[:12]}..., "
                f"this tokenizer's is {found[:12]}...)",
                key="safety_tokens",
                remedy=_CHOOSE,
            )
        strings = tokenizer.convert_ids_to_tokens(list(self.ids))
        for index, stored, own in zip(self.ids, self.tokens, strings, strict=True):
            if stored != own:
                raise TokenizerMismatchError(
                    f"id {index} is {own!r} in this tokenizer, not {stored!r}",
                    key="safety_tokens",
                    remedy=_CHOOSE,
                )
        if vocab_size is not None and max(self.ids) >= vocab_size:
            problem = f"one of them has id {max(self.ids)}, and the model has only {vocab_size} logits"
            raise TokenFileError(problem, key="safety_tokens", remedy=_CHOOSE)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the tokens to a file, whole or not at all, and return its path.

        Args:
            path: A file ending in `.safetensors`, or a directory (made if need be), which then gets
                `safety_tokens.safetensors`.

        Raises:
            TokenFileError: `path` is neither.
        """
        return token_file.write(Path(path), vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SafetyTokens:
        """Read safety tokens from a file, a directory, or a hub repository (`organisation/name`).

        Nothing in the file is executed: a pickle is refused unread.

        Raises:
            TokenFileError: Missing, corrupted, truncated, a pickle, another format, or unusable values.
        """
        file, fields = token_file.read(path)
        try:
            return cls(**fields)
        except ConfigError as error:  # the same checks, but it is the file that is wrong
            raise token_file.unusable(file, str(error)) from error


def _check_values(
    ids: Sequence[int], weights: Sequence[float], tokens: Sequence[str] | None, vocab_size: int
) -> None:
    if not len(ids) or len(weights) != len(ids) or (tokens is not None and len(tokens) != len(ids)):
        counts = f"{len(ids)} ids, {len(weights)} weights"
        counts += "" if tokens is None else f", {len(tokens)} token strings"
        raise ConfigError(counts, key="ids", remedy="Give at least one id, and one weight for every id.")
    for index in ids:
        if int(index) != index or not 0 <= index < vocab_size:
            problem = f"not an id of this vocabulary of {vocab_size} tokens"
            raise ConfigError(problem, key="ids", value=index, remedy=_CHOOSE)
    index, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"given {count} times", key="ids", value=index, remedy="Give every id once.")
    for weight in weights:
        if not abs(weight) <= _FLOAT32_MAX:  # not so for NaN
            raise ConfigError("not finite", key="weights", value=weight, remedy="Give finite weights.")
    if not max(np.float32(weight) for weight in weights) > 0:
        raise ConfigError(
            "no weight is positive, so no token would be held",
            key="weights",
            value=tuple(weights),
            remedy=_CHOOSE,
        )
