"""Putting a file of safety tokens on the Hugging Face hub, from where `safety_tokens: ORG/NAME` reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pact_plugin.data.markdown import cell, shown_name
from pact_plugin.errors import ConfigError, PluginError
from pact_plugin.tokens.file import FILE_NAME, unusable
from pact_plugin.tokens.safety_tokens import SafetyTokens

README = "README.md"
SHOWN = 10
"""Tokens that the page of the repository lists."""


def push(file: str | os.PathLike[str], repo_id: str, *, private: bool = False) -> str:
    """Upload a token file, and a page about it where the repository has none, in one commit.

    Args:
        file: A token file, or a directory that holds one.
        repo_id: `ORG/NAME`. The repository is made if need be; one that is there keeps its visibility.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        TokenFileError: `file` is missing, or not a file of safety tokens.
        ConfigError: Not logged in, no name of a repository, or the hub refuses or is not reached.
        PluginError: huggingface_hub is missing.
    """
    path = Path(file)
    if not path.exists():
        raise unusable(path, "there is no such file")
    tokens = SafetyTokens.load(path)
    path = path / FILE_NAME if path.is_dir() else path
    hub = _client()
    if hub.get_token() is None:
        raise ConfigError(
            "you are not logged in to the hub", key="HF_TOKEN", remedy="Run `hf auth login`, or set it."
        )
    api = hub.HfApi()
    with _errors(repo_id, api.endpoint):
        api.create_repo(repo_id, private=private, exist_ok=True)
        added = [hub.CommitOperationAdd(FILE_NAME, path)]
        if not api.file_exists(repo_id, README):
            added.append(hub.CommitOperationAdd(README, page(tokens, repo_id).encode()))
        done = api.create_commit(repo_id, added, commit_message=f"Safety tokens {tokens.digest}")
    return str(done.commit_url)


def _client() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise PluginError(
            "a token file is uploaded by huggingface_hub, which is missing",
            remedy="pip install huggingface_hub",
        ) from error
    return huggingface_hub


@contextmanager
def _errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """The client's errors as ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(
            "not the name of a repository", key="repo_id", value=repo_id, remedy="Write `ORG/NAME`."
        ) from error
    except HfHubHTTPError as error:
        raise ConfigError(
            f"the hub refuses the upload ({error.response.status_code})",
            key="repo_id",
            value=repo_id,
            remedy="Use a token that may write there, or name a repository of your own.",
        ) from error
    except (
        OSError,
        HfHubHTTPError.__mro__[1],
    ) as error:  # the errors of httpx or httpx2, by the client's release
        raise ConfigError(
            f"the hub cannot be reached ({type(error).__name__})",
            key="HF_ENDPOINT",
            value=endpoint,
            remedy="Unset $HF_HUB_OFFLINE, and look at the connection.",
        ) from error


def page(tokens: SafetyTokens, repo_id: str) -> str:
    """The page of a repository that holds a token file, in Markdown."""
    return "\n".join(_lines(tokens, repo_id)) + "\n"


def _lines(tokens: SafetyTokens, repo_id: str) -> Iterator[str]:
    yield from ("---", "tags:", "- pact", "- safety-tokens", "---", "", f"# {repo_id.rpartition('/')[2]}", "")
    yield "Safety tokens for [pact-plugin](https://pypi.org/project/pact-plugin/), which keeps an aligned language"
    yield "model's refusals while it is fine-tuned ([PACT, arXiv 2603.07445](https://arxiv.org/abs/2603.07445))."
    yield from ("", "```yaml", "pact:", f"  safety_tokens: {repo_id}", "```", "")
    yield f"{len(tokens)} tokens, digest `{tokens.digest}`. The highest weights:"
    yield from ("", "| token | weight |", "| --- | --- |")
    highest = sorted(zip(tokens.weights, tokens.tokens, strict=True), reverse=True)[:SHOWN]
    yield from (f"| `{cell(token)}` | {weight:+.4f} |" for weight, token in highest)
    yield from ("", "| chosen from | |", "| --- | --- |", f"| tokenizer (SHA-256) | `{tokens.fingerprint}` |")
    for key, value in tokens.provenance.items():
        shown = shown_name(value) if key in ("model", "base_model") else cell(value)
        yield f"| {cell(key)} | {shown} |"
