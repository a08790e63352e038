"""A hub on this machine: the few answers of the Hugging Face Hub that a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(root: Path) -> Iterator[str]:
    """Serve `root`/OWNER/NAME/... as repositories; gives the address. Stops afterwards.

    A repository with a file `gated` shows its list and refuses its files.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

        def _answer(self, *, with_body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._describe(root.joinpath(*parts[2:4]), parts[4:])
                return
            repo = root.joinpath(*parts[:2])
            path = repo.joinpath(*parts[4:])  # OWNER/NAME/resolve/COMMIT/FILE
            if (repo / "gated").exists():
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
                return
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            body = path.read_bytes()
            tag = hashlib.sha256(body).hexdigest()
            self._send(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, with_body=with_body)

        def _describe(self, repo: Path, what: list[str]) -> None:
            if not repo.is_dir():
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                return
            names = [path.relative_to(repo).as_posix() for path in repo.rglob("*") if path.is_file()]
            if what[:1] == ["tree"]:
                facts: object = [
                    {"type": "file", "path": n, "size": (repo / n).stat().st_size, "oid": COMMIT}
                    for n in names
                ]
            else:
                siblings = [{"rfilename": name} for name in names]
                facts = {"id": "/".join(repo.parts[-2:]), "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
