"""Safety tokens from the hub: its real client, in a process of its own, before a stand-in of the server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny import tiny_tokenizer

from pact_plugin import SafetyTokens
from pact_plugin.tokens.file import FILE_NAME

NAME = "my-org/my-tokens"
COMMIT = "1" * 40


@pytest.fixture
def files() -> dict[str, bytes]:
    """What the repository holds, by path."""
    return {}


@pytest.fixture
def address(files) -> Iterator[str]:
    """A hub with one repository, to be read from."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Silent."""

        def do_GET(self) -> None:
            content = files.get(self.path.removeprefix(f"/{NAME}/resolve/main/"))
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{COMMIT}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def do_HEAD(self) -> None:
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def show(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pact-plugin tokens show` with a cache of its own. The hub's client reads its settings at its import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
    return subprocess.run(
        [sys.executable, "-m", "pact_plugin.cli.main", "tokens", "show", NAME],
        env=kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_hub_id_is_read_and_kept_for_a_machine_without_a_network(files, address, tmp_path):
    tokens = SafetyTokens.for_tokenizer(tiny_tokenizer(), [300, 5, 290], [0.5, -0.25, 0.1])
    files[FILE_NAME] = tokens.save(tmp_path / "tokens.safetensors").read_bytes()
    for environment in ({"HF_ENDPOINT": address}, {"HF_HUB_OFFLINE": "1"}):
        shown = show(tmp_path, **environment)
        assert shown.returncode == 0, shown.stderr
        assert tokens.digest in shown.stdout


def test_a_repository_without_a_token_file_is_named(address, tmp_path):
    shown = show(tmp_path, HF_ENDPOINT=address)
    assert shown.returncode == 1
    assert f"safety_tokens='{NAME}'" in shown.stderr
    assert "the hub has no safety_tokens.safetensors under this name" in shown.stderr
