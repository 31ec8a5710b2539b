"""The file of safety tokens: safetensors with string metadata, never pickle.

Tensors `ids` (int64 [K]) and `weights` (float32 [K]); metadata `format`, `version`, `tokens` (JSON list of
strings), `vocab_size`, `fingerprint` and `provenance` (JSON object of strings). Specified in `spec/PACT.md`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from pact_plugin.data.files import written_whole
from pact_plugin.errors import TokenFileError

FILE_NAME = "safety_tokens.safetensors"
FORMAT = "pact-safety-tokens"
VERSION = "1"

_CHOOSE = "Choose tokens with `pact-plugin tokens select`, or point safety_tokens at another file."
_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def unusable(path: Path, problem: str, remedy: str = _CHOOSE) -> TokenFileError:
    """The error for a file that cannot be used."""
    return TokenFileError(problem, key="safety_tokens", value=str(path), remedy=remedy)


def write(path: Path, fields: Mapping[str, Any]) -> Path:
    """Write the fields of a `SafetyTokens`, whole or not at all, and return the file's path.

    Raises:
        TokenFileError: `path` is neither a directory nor a `.safetensors` file.
    """
    target = target_file(path)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "tokens": json.dumps(fields["tokens"], ensure_ascii=False),
        "vocab_size": str(fields["vocab_size"]),
        "fingerprint": fields["fingerprint"],
        "provenance": json.dumps(dict(fields["provenance"]), ensure_ascii=False),
    }
    arrays = {
        "ids": np.asarray(fields["ids"], dtype=np.int64),
        "weights": np.asarray(fields["weights"], dtype=np.float32),
    }
    content = serialize(arrays, metadata=metadata)
    with written_whole(target) as part:
        part.write_bytes(content)
    return target


def read(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The file that `path` means (a file, a directory or a hub id), and the fields of a `SafetyTokens` in it.

    Raises:
        TokenFileError: Missing, corrupted, truncated, a pickle, or another format.
    """
    file = _locate(path)
    _refuse_pickle(file)
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            names = set(opened.keys())
            if metadata.get("format") != FORMAT or not names >= {"ids", "weights"}:
                raise unusable(file, "a safetensors file, but not one of safety tokens")
            ids, weights = opened.get_tensor("ids"), opened.get_tensor("weights")
    except (SafetensorError, OSError) as error:
        raise unusable(file, f"corrupted or truncated: not a whole safetensors file ({error})") from error
    if metadata.get("version") != VERSION:
        problem = f"format version {metadata.get('version')}, and this release reads version {VERSION}"
        raise unusable(file, problem, "Upgrade pact-plugin, or choose the tokens again.")
    return file, _fields(file, metadata, ids, weights)


def _fields(file: Path, metadata: Mapping[str, str], ids: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    for name, array, dtype in (("ids", ids, np.int64), ("weights", weights, np.float32)):
        if array.ndim != 1 or array.dtype != dtype:
            found = f"{array.dtype} {list(array.shape)}"
            raise unusable(file, f"tensor {name} is {found}, not {np.dtype(dtype)} [K]")
    try:
        tokens, provenance = json.loads(metadata["tokens"]), json.loads(metadata.get("provenance", "{}"))
        vocab_size, fingerprint = int(metadata["vocab_size"]), metadata["fingerprint"]
    except (KeyError, ValueError) as error:
        raise unusable(file, f"corrupted metadata ({error!r})") from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise unusable(file, "corrupted metadata (tokens is not a list of strings)")
    if not isinstance(provenance, dict):
        raise unusable(file, "corrupted metadata (provenance is not an object)")
    return {
        "ids": tuple(ids.tolist()),
        "weights": tuple(weights.tolist()),
        "tokens": tuple(tokens),
        "vocab_size": vocab_size,
        "fingerprint": fingerprint,
        "provenance": {str(key): str(value) for key, value in provenance.items()},
    }


def target_file(path: Path) -> Path:
    """The file that `write` would write.

    Raises:
        TokenFileError: `path` is neither a directory nor a `.safetensors` file.
    """
    if path.is_dir():
        return path / FILE_NAME
    if path.suffix == ".safetensors":
        return path
    if path.exists() or path.suffix[1:].isalpha():  # a version number such as `llama-3.2` is no suffix
        raise unusable(path, "not a .safetensors file or a directory", "Let the name end in .safetensors.")
    return path / FILE_NAME


def _locate(path: str | os.PathLike[str]) -> Path:
    """The local file that a path or hub id means; downloads it if need be."""
    local = Path(path)
    if local.is_dir():
        local = local / FILE_NAME
    if local.is_file():
        return local
    name = os.fspath(path)
    if (
        Path(path).is_dir()
        or local.suffix in {".safetensors", *_PICKLE_SUFFIXES}
        or not _HUB_ID.fullmatch(name)
    ):
        raise unusable(local, "there is no such file")
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        problem = "there is no such file, and huggingface_hub is missing to look on the hub"
        raise unusable(local, problem, "pip install huggingface_hub, or correct the path.") from error
    try:
        return Path(hf_hub_download(name, FILE_NAME))
    except (OSError, ValueError) as error:  # the hub's errors (not found, offline, invalid name) are of these
        problem = (
            f"there is no such file, and the hub has no {FILE_NAME} under this name or cannot be reached"
        )
        raise unusable(local, f"{problem} ({type(error).__name__})") from error


def _refuse_pickle(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(9)
    # A safetensors file begins with its header's length (8 bytes) and `{`; the length may look like a pickle.
    if head[3:] == b"\0\0\0\0\0{":
        return
    # Pickle protocols 2 to 5 begin with 0x80 and the protocol; torch.save writes a zip archive around one.
    if file.suffix in _PICKLE_SUFFIXES or re.match(rb"\x80[\x02-\x05]|PK\x03\x04", head):
        raise unusable(file, "a pickle, which can run any code when it is read, so it is never loaded")
