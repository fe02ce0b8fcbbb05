"""A stand-in for the Hugging Face Hub on this machine: it answers what huggingface_hub asks."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_secretOfTheTests"
OWNER = "org"
"""Whose repositories the token may write to."""


@dataclass
class Repository:
    """Its files by path."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """Repositories by name, and every request as "POST /api/repos/create"."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@contextmanager
def hub() -> Generator[Hub]:
    """Within the block, a server of the loopback answers as the Hub does."""
    state = Hub()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answered("GET")

    def do_POST(self) -> None:
        self._answered("POST")

    def _answered(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refused(401, "Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            self._created(json.loads(body))
        elif path == "/api/validate-yaml":
            self._checked(json.loads(body)["content"])
        elif asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z]+)/main)?", path):
            self._of_repository(asked[1], asked[2], body)
        else:
            self._refused(404, f"{path} is not known here")

    def _created(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if asked["organization"] != OWNER:
            self._refused(403, f"You have no write access to {asked['organization']}")
        elif name in self.hub.repositories:
            self._send(409, url)
        else:
            is_private = asked.get("visibility") == "private" or asked.get("private") is True
            self.hub.repositories[name] = Repository(is_private, {".gitattributes": b""})
            self._send(200, url)

    def _checked(self, card: str) -> None:
        """The card's front matter; the Hub takes no path as a base model."""
        matter = card.split("---")[1]
        is_bad = re.search(r"^base_model: [\"']?[./]", matter, re.MULTILINE) is not None
        errors = [{"message": '"base_model" is not valid'}] if is_bad else []
        self._send(400 if is_bad else 200, {"errors": errors, "warnings": []})

    def _of_repository(self, name: str, what: str | None, body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refused(404, "Repository not found")
        elif what in (None, "revision"):
            siblings = [{"rfilename": path} for path in repository.files]
            content = {
                "id": name,
                "private": repository.private,
                "sha": "0" * 40,
                "siblings": siblings,
            }
            self._send(200, content)
        elif what == "tree":
            listed = [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in repository.files.items()
            ]
            self._send(200, listed)
        elif what == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            self._send(200, {"files": modes})
        else:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    repository.files[entry["value"]["path"]] = content
                elif entry["key"] == "deletedFile":
                    del repository.files[entry["value"]["path"]]
            url = f"{self.hub.endpoint}/{name}/commit/{'0' * 40}"
            self._send(200, {"commitUrl": url, "commitOid": "0" * 40})

    def _refused(self, status: int, message: str) -> None:
        self._send(status, {"error": message}, {"X-Error-Message": message})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
