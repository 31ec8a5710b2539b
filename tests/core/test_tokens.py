"""Safety tokens: what is refused, the file format, and the tokenizer they belong to."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny import tiny_tokenizer

from pact_plugin import SafetyTokens
from pact_plugin.errors import ConfigError, TokenFileError, TokenizerMismatchError
from pact_plugin.tokens.file import FILE_NAME
from pact_plugin.tokens.safety_tokens import tokenizer_fingerprint

IDS, WEIGHTS = (300, 5, 290), (0.5, -0.25, 0.1)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def tokens(tokenizer) -> SafetyTokens:
    return SafetyTokens.for_tokenizer(tokenizer, IDS, WEIGHTS, {"contrast": "benign", "model": "tiny – 模型"})


def rewritten(original: SafetyTokens, folder: Path, *, arrays=None, **metadata: str | None) -> Path:
    """A token file of which some tensors or metadata entries are replaced, or left out if None."""
    file = original.save(folder / "original.safetensors")
    with safe_open(file, framework="numpy") as opened:
        content = {name: opened.get_tensor(name) for name in ("ids", "weights")}
        entries = opened.metadata()
    changed = folder / "changed.safetensors"
    entries = {key: value for key, value in (entries | metadata).items() if value is not None}
    content = {key: value for key, value in (content | (arrays or {})).items() if value is not None}
    save_file(content, changed, metadata=entries)
    return changed


def test_tokens_know_their_strings_and_the_size_of_the_vocabulary(tokenizer, tokens):
    assert tokens.tokens == tuple(tokenizer.convert_ids_to_tokens(list(IDS)))
    assert tokens.vocab_size == len(tokenizer)
    assert len(tokens) == 3


def test_positive_keeps_the_tokens_with_positive_weight_in_order(tokens):
    assert tokens.positive.ids == (300, 290)
    assert tokens.positive.tokens == (tokens.tokens[0], tokens.tokens[2])
    assert tokens.positive.fingerprint == tokens.fingerprint
    assert tokens.positive.positive == tokens.positive


def test_digest_names_ids_weights_and_their_order(tokenizer, tokens):
    content = np.array(IDS, "<i8").tobytes() + np.array(WEIGHTS, "<f4").tobytes()
    assert tokens.digest == hashlib.sha256(content).hexdigest()[:16]
    for ids, weights in (((300, 5, 291), WEIGHTS), (IDS, (0.5, -0.25, 0.2)), (IDS[::-1], WEIGHTS[::-1])):
        assert SafetyTokens.for_tokenizer(tokenizer, ids, weights).digest != tokens.digest
    same = SafetyTokens.for_tokenizer(tokenizer, IDS, WEIGHTS, {"contrast": "base"})
    assert same.digest == tokens.digest


def test_tokens_can_be_copied_hashed_and_compared(tokens):
    assert copy.deepcopy(tokens) == tokens == pickle.loads(pickle.dumps(tokens))
    assert hash(copy.deepcopy(tokens)) == hash(tokens)
    with pytest.raises(AttributeError):
        tokens.ids = (1,)


@pytest.mark.parametrize(
    ("ids", "weights", "key"),
    [
        ((5, 100_000), (1.0, 1.0), "ids=100000"),
        ((5, -1), (1.0, 1.0), "ids=-1"),
        ((5, 1.5), (1.0, 1.0), "ids=1.5"),
        ((5, 5), (1.0, 2.0), "ids=5"),
        ((), (), "ids"),
        ((5, 6), (1.0,), "ids"),
        ((5, 6), (1.0, float("nan")), "weights=nan"),
        ((5, 6), (1.0, float("inf")), "weights=inf"),
        ((5, 6), (1.0, 1e39), "weights=1e+39"),  # infinite in float32
        ((5, 6), (0.0, -1.0), r"weights=(0.0, -1.0)"),
        ((5, 6), (1e-60, -1.0), r"weights=(1e-60, -1.0)"),  # zero in float32
    ],
)
def test_unusable_ids_and_weights_are_refused_by_name(tokenizer, ids, weights, key):
    with pytest.raises(ConfigError) as caught:
        SafetyTokens.for_tokenizer(tokenizer, ids, weights)
    assert str(caught.value).startswith(key)
    assert caught.value.remedy


def test_ids_in_a_gap_of_the_vocabulary_are_refused(tokens):
    class Gappy:
        def get_vocab(self):
            return {"a": 0, "b": 2}

        def get_added_vocab(self):
            return {}

        def convert_ids_to_tokens(self, ids):
            return [{0: "a", 2: "b"}.get(index) for index in ids]

    assert SafetyTokens.for_tokenizer(Gappy(), [2], [1.0]).tokens == ("b",)
    with pytest.raises(ConfigError, match="ids=1: no token has this id"):
        SafetyTokens.for_tokenizer(Gappy(), [1], [1.0])


@pytest.mark.parametrize("name", ["tokens.safetensors", "new/folder", "with.dots-1.5", "."])
def test_a_saved_file_loads_as_it_was(tokens, tmp_path, name):
    written = tokens.save(tmp_path / name)
    assert written.name == (name if name.endswith(".safetensors") else FILE_NAME)
    assert SafetyTokens.load(tmp_path / name) == tokens
    assert SafetyTokens.load(str(written)) == tokens
    assert [path for path in written.parent.iterdir() if "partial" in path.name] == []


def test_the_file_holds_what_the_specification_says(tokenizer, tokens, tmp_path):
    with safe_open(tokens.save(tmp_path), framework="numpy") as opened:
        assert set(opened.keys()) == {"ids", "weights"}
        ids, weights, metadata = opened.get_tensor("ids"), opened.get_tensor("weights"), opened.metadata()
    assert (ids.dtype, weights.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(ids, IDS)
    np.testing.assert_array_equal(weights, np.array(WEIGHTS, np.float32))
    assert metadata["format"] == "pact-safety-tokens"
    assert metadata["version"] == "1"
    assert json.loads(metadata["tokens"]) == list(tokens.tokens)
    assert metadata["vocab_size"] == str(len(tokenizer))
    assert metadata["fingerprint"] == tokenizer_fingerprint(tokenizer)
    assert json.loads(metadata["provenance"]) == {"contrast": "benign", "model": "tiny – 模型"}


@pytest.mark.parametrize("name", ["tokens.pt", "tokens.json", "tokens.bin"])
def test_saving_under_another_suffix_is_refused_and_writes_nothing(tokens, tmp_path, name):
    with pytest.raises(TokenFileError, match="safetensors"):
        tokens.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file_and_no_other(tokens, tmp_path, monkeypatch):
    file = tokens.save(tmp_path)
    before = file.read_bytes()

    def fail(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        tokens.positive.save(tmp_path)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == before


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self):
        return (Path.touch, (self.trap,))


@pytest.mark.parametrize("name", ["tokens.pt", "tokens.bin", "tokens.pkl", "tokens.safetensors", "tokens"])
@pytest.mark.parametrize("write", ["pickle-2", "pickle-5", "torch", "torch-legacy"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, name, write):
    trap, file = tmp_path / "trap", tmp_path / name
    if write.startswith("pickle"):
        file.write_bytes(pickle.dumps(Exploit(trap), protocol=int(write[-1])))
    else:
        torch.save(Exploit(trap), file, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(TokenFileError, match="pickle"):
        SafetyTokens.load(file)
    assert not trap.exists()


def test_a_safetensors_file_that_begins_like_a_pickle_is_none(tokens, tmp_path):
    tokens.save(tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    length = int.from_bytes(content[:8], "little")
    padding = 0x0280 - length  # 0x80 0x02 opens a pickle of protocol 2; spaces may end a safetensors header
    assert padding > 0
    header = content[8 : 8 + length] + b" " * padding
    file = tmp_path / "chance.safetensors"
    file.write_bytes((0x0280).to_bytes(8, "little") + header + content[8 + length :])
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert SafetyTokens.load(file) == tokens


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(tokens, tmp_path, kept):
    file = tokens.save(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(TokenFileError, match="corrupted or truncated"):
        SafetyTokens.load(file)


def test_a_corrupted_file_is_refused(tokens, tmp_path):
    file = tokens.save(tmp_path)
    content = bytearray(file.read_bytes())
    content[20:40] = b"\xff" * 20
    file.write_bytes(bytes(content))
    with pytest.raises(TokenFileError, match="corrupted"):
        SafetyTokens.load(file)


def test_other_safetensors_are_refused(tokens, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros((2, 2), np.float32)}, file)
    with pytest.raises(TokenFileError, match="not one of safety tokens"):
        SafetyTokens.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not one of safety tokens"),
        ({"version": "2"}, "version 2"),
        ({"version": None}, "version None"),
        ({"tokens": None}, "corrupted metadata"),
        ({"tokens": "[1, 2, 3]"}, "list of strings"),
        ({"tokens": '["a"]'}, "1 token strings"),
        ({"tokens": "{"}, "corrupted metadata"),
        ({"vocab_size": "many"}, "corrupted metadata"),
        ({"vocab_size": "10"}, "ids=300"),
        ({"fingerprint": None}, "corrupted metadata"),
        ({"provenance": "[]"}, "not an object"),
        ({"arrays": {"weights": None}}, "not one of safety tokens"),
        ({"arrays": {"ids": np.array([1, 2, 3], np.int32)}}, "tensor ids is int32"),
        ({"arrays": {"ids": np.array([[1, 2, 3]])}}, "tensor ids is int64 [1, 3]"),
        ({"arrays": {"weights": np.zeros(3)}}, "tensor weights is float64"),
        ({"arrays": {"ids": np.array([1, 2])}}, "2 ids, 3 weights"),
        ({"arrays": {"ids": np.array([1, 2, 2])}}, "ids=2: given 2 times"),
        ({"arrays": {"ids": np.array([1, 2, 400])}}, "ids=400"),
        ({"arrays": {"weights": np.array([1, np.nan, 1], np.float32)}}, "weights=nan"),
        ({"arrays": {"weights": np.zeros(3, np.float32)}}, "no weight is positive"),
    ],
)
def test_unusable_contents_are_refused(tokens, tmp_path, change, message):
    file = rewritten(tokens, tmp_path, **change)
    with pytest.raises(TokenFileError) as caught:
        SafetyTokens.load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert caught.value.key == "safety_tokens"


@pytest.mark.parametrize(
    "name", ["missing.safetensors", "missing.pt", "missing", "folder/missing.safetensors"]
)
def test_a_missing_file_is_said_to_be_missing(tmp_path, name):
    with pytest.raises(TokenFileError, match="there is no such file"):
        SafetyTokens.load(tmp_path / name)
    with pytest.raises(TokenFileError, match="there is no such file"):
        SafetyTokens.load(tmp_path)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(repository, name):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(TokenFileError, match=r"hub has no .* or cannot be reached"):
        SafetyTokens.load("organisation/model-tokens")


def test_fingerprint_is_that_of_the_specification(tokenizer):
    vocabulary = tokenizer.get_vocab()
    for token in tokenizer.get_added_vocab():
        del vocabulary[token]
    entries = sorted(vocabulary.items())
    text = (
        "{" + ",".join(f"{json.dumps(token, ensure_ascii=False)}:{index}" for token, index in entries) + "}"
    )
    assert tokenizer_fingerprint(tokenizer) == hashlib.sha256(text.encode()).hexdigest()


def test_added_tokens_do_not_change_the_fingerprint(tokenizer, tokens):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer_fingerprint(tokenizer) == before
    tokens.check(tokenizer)


def _retrained(tokenizer):
    """The same tokenizer with two ids exchanged."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    first, second = (token for token, index in vocabulary.items() if index in (300, 301))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    other = tiny_tokenizer()
    other._tokenizer = Tokenizer.from_str(json.dumps(content))
    return other


def test_another_tokenizer_is_refused(tokenizer, tokens):
    tokens.check(tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(TokenizerMismatchError, match=r"safety_tokens.*another tokenizer.*tokens select"):
        tokens.check(_retrained(tokenizer))


def test_token_strings_must_agree_even_where_the_fingerprint_does(tokenizer):
    added = SafetyTokens.for_tokenizer(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")], [1.0])
    added.check(tokenizer)
    other = tiny_tokenizer()
    other.add_tokens(["<x>"])
    wrong = SafetyTokens(added.ids, (1.0,), ("<x>",), added.vocab_size, added.fingerprint)
    with pytest.raises(TokenizerMismatchError, match=r"is '<\|im_end\|>' in this tokenizer, not '<x>'"):
        wrong.check(tokenizer)


def test_a_model_without_logits_for_the_tokens_is_refused(tokenizer, tokens):
    with pytest.raises(
        TokenFileError, match="safety_tokens: one of them has id 300, and the model has only 300 logits"
    ):
        tokens.check(tokenizer, vocab_size=300)
