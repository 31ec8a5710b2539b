"""A stand-in for the Hugging Face hub: a local HTTP server with the few endpoints that token files need."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_" + "a" * 34
"""May write; no other may."""


@dataclass
class Hub:
    """What is on it.

    Args:
        repositories: Files by path, by name.
        private: Names of those that are private.
        commits: Their messages.
        address: Of the server.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at an address of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "Invalid username or password.")
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self._create(json.loads(content))
        parts = self.path.split("/")  # /api/models/ORG/NAME/preupload/main
        name, what = "/".join(parts[3:5]), parts[5]
        if name not in self.hub.repositories:
            return self._error(404, "Repository not found", "RepoNotFound")
        if what == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(content)["files"]
            ]
            return self._json({"files": files})
        return self._commit(name, content)

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name.startswith("another/"):
            return self._error(403, "You don't have the rights to create a model under this namespace")
        status = 409 if name in self.hub.repositories else 200
        if status == 200:
            self.hub.repositories[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
        self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": "1"}, status)

    def _commit(self, name: str, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "header":
                self.hub.commits.append(line["value"]["summary"])
            if line["key"] == "file":
                self.hub.repositories[name][line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
        oid = "1" * 40
        self._json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}"}
        )

    def _file(self) -> None:
        name, _, path = self.path.lstrip("/").partition("/resolve/main/")
        files = self.hub.repositories.get(name)
        if files is None:
            return self._error(404, "Repository not found", "RepoNotFound")
        if path not in files:
            return self._error(404, "Entry not found", "EntryNotFound")
        self._send(
            200,
            files[path],
            {"ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"', "X-Repo-Commit": "1" * 40},
        )

    def _error(self, status: int, message: str, code: str = "") -> None:
        self._json(
            {"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        )

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(
            status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
