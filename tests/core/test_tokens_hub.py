"""Safety tokens on the hub: the real client of the hub, in a process of its own, before a stand-in of the server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub import TOKEN, Hub, serving
from safetensors.numpy import save_file
from tiny import tiny_tokenizer

from pact_plugin import SafetyTokens
from pact_plugin.tokens.file import FILE_NAME
from pact_plugin.tokens.hub import page

NAME = "my-org/my-tokens"


@pytest.fixture(scope="module")
def tokens() -> SafetyTokens:
    facts = {"model": "/home/someone/a|model", "refused": "300"}
    return SafetyTokens.for_tokenizer(tiny_tokenizer(), [300, 5, 290], [0.5, -0.25, 0.1], facts)


@pytest.fixture
def file(tokens, tmp_path) -> Path:
    return tokens.save(tmp_path / "tokens.safetensors")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as one:
        yield one


def run(home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pact-plugin tokens ...` with a cache of its own. The hub's client reads its settings at its import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
    return subprocess.run(
        [sys.executable, "-m", "pact_plugin.cli.main", "tokens", *map(str, arguments)],
        env=kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_file_is_pushed_with_its_page_and_read_again(hub, file, tokens, tmp_path):
    access = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}
    done = run(tmp_path, "push", file, NAME, "--private", **access)
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/{NAME}/commit/" in done.stdout
    assert f"safety_tokens: {NAME}" in done.stdout
    assert hub.repositories[NAME] == {FILE_NAME: file.read_bytes(), "README.md": page(tokens, NAME).encode()}
    assert hub.private == {NAME}
    assert hub.commits == [f"Safety tokens {tokens.digest}"]

    shown = run(tmp_path, "show", NAME, **access)
    assert shown.returncode == 0, shown.stderr
    assert tokens.digest in shown.stdout
    # It lies in the client's cache now, so that a machine without a network reads it as well.
    offline = run(tmp_path, "show", NAME, HF_HUB_OFFLINE="1")
    assert tokens.digest in offline.stdout


def test_a_repository_that_is_there_keeps_its_page(hub, file, tmp_path):
    hub.repositories[NAME] = {"README.md": b"A model."}
    done = run(tmp_path, "push", file, NAME, HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert hub.repositories[NAME] == {"README.md": b"A model.", FILE_NAME: file.read_bytes()}
    assert not hub.private


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        (NAME, {}, "HF_TOKEN: you are not logged in to the hub. Run `hf auth login`"),
        (NAME, {"HF_TOKEN": "hf_wrong"}, f"repo_id='{NAME}': the hub refuses the upload (401). Use a token"),
        ("another/name", {"HF_TOKEN": TOKEN}, "repo_id='another/name': the hub refuses the upload (403)"),
        ("a/b/c", {"HF_TOKEN": TOKEN}, "repo_id='a/b/c': not the name of a repository"),
        (
            NAME,
            {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"},
            "the hub cannot be reached (OfflineModeIsEnabled)",
        ),
        (
            NAME,
            {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"},
            "the hub cannot be reached (Connect",
        ),
    ],
)
def test_what_keeps_a_file_from_being_pushed_is_named(hub, file, tmp_path, name, environment, message):
    done = run(tmp_path, "push", file, name, **({"HF_ENDPOINT": hub.address} | environment))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert all(not files for files in hub.repositories.values())


def test_another_file_is_not_pushed(hub, tokens, tmp_path):
    other = tmp_path / "model.safetensors"
    save_file({"weights": np.asarray(tokens.weights)}, other)
    for path, message in ((other, "not one of safety tokens"), (tmp_path / "none", "there is no such file")):
        done = run(tmp_path, "push", path, NAME, HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
        assert done.returncode == 1
        assert message in done.stderr
    assert not hub.repositories


def test_a_repository_without_a_token_file_is_named(hub, tmp_path):
    hub.repositories[NAME] = {}
    done = run(tmp_path, "show", NAME, HF_ENDPOINT=hub.address)
    assert done.returncode == 1
    assert f"safety_tokens='{NAME}'" in done.stderr
    assert "the hub has no safety_tokens.safetensors under this name" in done.stderr


def test_the_page_names_no_folder_of_the_one_who_chose(tokens):
    text = page(tokens, NAME)
    assert "/home/someone" not in text
    assert "a\\|model" in text
    assert f"safety_tokens: {NAME}" in text
    assert tokens.fingerprint in text
