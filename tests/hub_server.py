"""A Hub on this machine: enough of its HTTP interface for huggingface_hub to list, resolve and download repositories."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


def weights(fill: int = 0, size: int = 64) -> bytes:
    """A whole safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([fill]) * size


def model(variant: str = "", **more: bytes) -> Files:
    """The files of a published model in the diffusers layout, and some that nobody should fetch."""
    files = {f"{part}/config.json": b"{}" for part in ("unet", "vae", "text_encoder")}
    files |= {f"{part}/diffusion_pytorch_model{variant}.safetensors": weights(n) for n, part in enumerate(("unet", "vae"))}
    files |= {f"text_encoder/model{variant}.safetensors": weights(2), "scheduler/scheduler_config.json": b"{}"}
    files |= {f"tokenizer/{name}": b"{}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")}
    unwanted = {"README.md": b"#", "unet/mv_unet.py": b"raise SystemExit", "unet/diffusion_pytorch_model.bin": b"pickle", "big.ckpt": b"p"}
    return files | unwanted | more


class Hub:
    """Repositories by id and commit; `branches` of an id name commits. `log` has the paths asked for, `cut` breaks off each download of
    a path containing it after so many bytes."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.log: list[str] = []
        self.ranges: list[str] = []
        self.cut: tuple[str, int] | None = None
        self.endpoint = ""
        self.refusal: tuple[int, dict[str, str]] | None = None  # status and headers of every answer

    def add(self, id: str, commit: str, files: Files) -> None:
        self.repositories.setdefault(id, {})[commit] = files
        self.branches.setdefault(id, {}).setdefault("main", commit)

    def fetched(self) -> set[str]:
        """Paths of files that were asked for, without their repository."""
        return {path.partition("/resolve/")[2].partition("/")[2] for path in self.log if "/resolve/" in path}

    def at(self, id: str, revision: str) -> tuple[str, Files] | None:
        commits = self.repositories.get(id, {})
        commit = self.branches.get(id, {}).get(revision, revision)
        return (commit, commits[commit]) if commit in commits else None


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(Answers):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.log.append(path)
        if self.hub.refusal:
            return self.send(self.hub.refusal[0], b"", self.hub.refusal[1], body)
        words = path.split("/")
        api = words[:2] == ["api", "models"]
        id = "/".join(words[2:4] if api else words[:2])
        kind, *rest = words[4:] if api else words[2:]
        if id not in self.hub.repositories:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if kind == "commits":
            return self.send_json([commit_info(commit) for commit in self.hub.repositories[id]])
        found = self.hub.at(id, rest[0])
        if found is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        commit, files = found
        if kind == "revision":
            return self.send_json({"id": id, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        if kind == "tree":
            return self.send_json([tree_entry(name, data) for name, data in files.items()])
        self.send_file("/".join(rest[1:]), commit, files, body)

    def send_file(self, name: str, commit: str, files: Files, body: bool) -> None:
        if name not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        data, status = files[name], 200
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(name, data)}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked and body:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            self.hub.ranges.append(asked)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self.send(status, data, headers, body, name)

    def send_json(self, values: object) -> None:
        self.send(200, json.dumps(values).encode(), {"Content-Type": "application/json"}, True)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool, name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.hub.cut and name and self.hub.cut[0] in name:
            self.wfile.write(data[: self.hub.cut[1]])
            self.close_connection = True
        elif body:
            self.wfile.write(data)


def etag(name: str, data: bytes) -> str:
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def tree_entry(name: str, data: bytes) -> dict:
    lfs = {"lfs": {"oid": etag(name, data), "size": len(data), "pointerSize": 100}} if name.endswith(".safetensors") else {}
    return {"type": "file", "path": name, "size": len(data), "oid": etag("", data)} | lfs


def commit_info(commit: str) -> dict:
    return {"id": commit, "title": "", "message": "", "date": "2024-01-01T00:00:00.000Z", "authors": []}


def put_in_cache(cache: Path, id: str, commit: str, files: Files) -> Path:
    """A repository as huggingface_hub would have left it in its cache: files named by checksum, and links to them."""
    storage = cache / f"models--{id.replace('/', '--')}"
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot = storage / "snapshots" / commit
    for name, data in files.items():
        blob = storage / "blobs" / etag(name, data)
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/".join([".."] * (name.count("/") + 2)) + f"/blobs/{blob.name}")
    return snapshot
