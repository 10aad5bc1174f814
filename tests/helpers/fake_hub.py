"""A hub in this process: as much of its interface as making and filling a repository takes."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_nobody"


class FakeHub:
    """What it was sent: repositories by name, each with its files and whether it is private."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}  # large files, by SHA-256
        self.refused: dict[str, int] = {}  # part of a path → status

    def answer(self, method: str, path: str, body: bytes):
        """JSON, or a status other than 200 and JSON."""
        parts = path.partition("?")[0].strip("/").split("/")
        if method == "GET" and parts == ["api", "whoami-v2"]:
            return {"name": "me", "type": "user", "orgs": [], "auth": {"type": "access_token"}}
        if method == "PUT" and parts[0] == "large":
            self.stored[parts[1]] = body
            return {}
        data = body and json.loads(body.splitlines()[0])
        if parts == ["api", "validate-yaml"]:
            return {"errors": [], "warnings": []}
        if parts == ["api", "repos", "create"]:
            repo = f"{data.get('organization') or 'me'}/{data['name']}"
            there = {"url": f"{self.url}/{repo}", "name": repo}
            if repo in self.repos:
                return 409, there
            self.repos[repo] = {".gitattributes": b""}
            self.private[repo] = data.get("private", data.get("visibility") == "private")
            return there
        if parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), parts[4:], data, body)
        if parts[-2:] == ["objects", "batch"]:
            return self._batch(data)
        raise AssertionError(f"{method} {path} is not known here")

    def _model(self, repo, rest, data, body):
        files = self.repos[repo]
        if rest[0] == "tree":
            return [
                {"type": "file", "path": p, "size": len(c), "oid": "0" * 40}
                for p, c in files.items()
            ]
        if rest[0] == "preupload":
            return {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in data["files"]
                ]
            }
        assert rest[0] == "commit"
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/1", "commitOid": "1" * 40}

    def _batch(self, data):
        upload = {
            one["oid"]: {"upload": {"href": f"{self.url}/large/{one['oid']}"}}
            for one in data["objects"]
        }
        objects = [{**one, "actions": upload[one["oid"]]} for one in data["objects"]]
        return {"transfer": "basic", "objects": objects}


@contextmanager
def hub_running() -> Iterator[FakeHub]:
    """A hub that answers on a port of this machine."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refused = [status for part, status in hub.refused.items() if part in self.path]
            answer = (refused[0], {}) if refused else hub.answer(self.command, self.path, body)
            status, data = answer if isinstance(answer, tuple) else (200, answer)
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    for method in ("GET", "POST", "PUT"):
        setattr(Handler, f"do_{method}", Handler._handle)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
