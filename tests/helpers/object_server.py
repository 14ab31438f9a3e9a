"""A server of files on this machine: plain HTTP, and as much of S3 as obstore speaks.

It counts what it is asked for, and misbehaves as it is told.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from featx.files import stores

BUCKET = "bucket"
ACCESS_KEY, SECRET_KEY = "AKIAUSERNAME", "a-secret-that-nobody-sees"
MISDEEDS = ("drop", "cut", "stall", 429, 500, 503)
"""Ways to fail that may be over at the next request."""


class ObjectServer:
    """Objects by name, in one bucket; use `serving`."""

    def __init__(self, page: int = 1000) -> None:
        self.objects: dict[str, bytes] = {}
        self.changed: dict[str, float] = {}
        self.page = page
        self.requests: list[tuple[str, str]] = []
        self.bodies: dict[str, dict[int, bytes]] = {}
        self.misbehave = lambda method, name: None
        self.lock = threading.Lock()
        self.stalled = threading.Event()
        self.waiting = 0  # requests that are stalled
        self.authorisation: list[str] = []
        self.url = ""

    def put(self, name: str, content: bytes) -> None:
        with self.lock:
            self.objects[name] = content
            self.changed[name] = 1_700_000_000 + len(self.changed)

    def put_folder(self, folder, prefix: str = "") -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}{path.relative_to(folder).as_posix()}", path.read_bytes())

    def count(self, method: str, name: str | None = None) -> int:
        """How often objects, or one of them, were asked for; listings do not count."""
        return sum(m == method and n != "" and name in (None, n) for m, n in self.requests)

    def take_turns(self, every: int, ways=MISDEEDS) -> None:
        """Let every so manieth request for an object fail, in one of the ways in turn."""
        turns = {"asked": 0}

        def misbehave(method: str, name: str):
            if not name:
                return None
            with self.lock:
                turns["asked"] += 1
                number, rest = divmod(turns["asked"], every)
            return None if rest else ways[number % len(ways)]

        self.misbehave = misbehave

    def dead(self, name: str, way=500) -> None:
        """Let every request for an object fail."""
        self.misbehave = lambda method, asked: way if asked == name else None

    def environment(self) -> dict[str, str]:
        """Variables with which obstore finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: ObjectServer
    way: object = None

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # who asked has gone
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        name = self._name(url.path)
        if not name and "list-type" in query:
            self._list({key: values[0] for key, values in query.items()})
            return
        self._object(name)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        name, body = self._name(url.path), self._body()
        if self._misbehaves(name):
            return
        if "partNumber" in query:
            parts = self.store.bodies.setdefault(name, {})
            parts[int(query["partNumber"][0])] = body
        elif self.headers.get("If-None-Match") == "*" and name in self.store.objects:
            self._answer(412, b"")
            return
        else:
            self.store.put(name, body)
        self._answer(200, b"", {"ETag": _etag(body)})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        name, body = self._name(url.path), self._body()
        if self._misbehaves(name):
            return
        if "uploads" in query:
            self._answer(200, _xml("InitiateMultipartUploadResult", "<UploadId>1</UploadId>"))
            return
        assert "uploadId" in query, body
        parts = self.store.bodies.pop(name)
        self.store.put(name, b"".join(parts[number] for number in sorted(parts)))
        etag = escape(_etag(self.store.objects[name]))
        self._answer(200, _xml("CompleteMultipartUploadResult", f"<ETag>{etag}</ETag>"))

    def _name(self, path: str) -> str:
        return unquote(path).removeprefix(f"/{BUCKET}").removeprefix("/")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _object(self, name: str) -> None:
        signed = self.headers.get("Authorization", "")
        if self._misbehaves(name):
            return
        content = self.store.objects.get(name)
        if not signed.startswith("AWS4"):
            self.store.authorisation.append(signed)
        if content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        headers = {
            "ETag": _etag(content),
            "Last-Modified": formatdate(self.store.changed[name], usegmt=True),
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, content, headers)
            return
        start = int(asked[1]) if asked[1] else len(content) - int(asked[2])
        end = int(asked[2]) + 1 if asked[1] and asked[2] else len(content)
        part = content[start:end]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self._answer(206, part, headers)

    def _list(self, query: dict[str, str]) -> None:
        if self._misbehaves(""):
            return
        prefix, start = query.get("prefix", ""), query.get("start-after", "")
        delimiter = query.get("delimiter", "")
        after = query.get("continuation-token", start)
        with self.store.lock:
            names = sorted(n for n in self.store.objects if n.startswith(prefix) and n > after)
        rows, folders, last = [], [], ""
        for name in names:
            if len(rows) + len(folders) >= self.store.page:
                break
            last = name
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                if f"{prefix}{head}{found}" not in folders:
                    folders.append(f"{prefix}{head}{found}")
                continue
            content = self.store.objects[name]
            changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.store.changed[name]))
            rows.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(content)}</Size>"
                f"<LastModified>{changed}</LastModified><ETag>{escape(_etag(content))}</ETag>"
                "</Contents>"
            )
        more = bool(names) and last != names[-1]
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        rows += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders]
        cut = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}"
        self._answer(200, _xml("ListBucketResult", cut + "".join(rows)))

    def _misbehaves(self, name: str) -> bool:
        """Note a request; do what is to go wrong with it, and return whether nothing is left."""
        with self.store.lock:
            self.store.requests.append((self.command, name))
        self.way = self.store.misbehave(self.command, name)
        if isinstance(self.way, int):
            self._answer(self.way, b"<Error><Code>SlowDown</Code></Error>")
            return True
        if self.way == "stall":
            with self.store.lock:
                self.store.waiting += 1
            self.store.stalled.wait(30)
            with self.store.lock:
                self.store.waiting -= 1
        if self.way in ("stall", "drop"):
            self._hang_up()
            return True
        return False

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.way == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self._hang_up()
            return
        self.wfile.write(body)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _xml(kind: str, inner: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{kind}>{inner}</{kind}>'.encode()


@contextmanager
def serving(page: int = 1000):
    """Start a server on a port of its own, with the environment that leads to it."""
    store = ObjectServer(page)
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        patch.setattr(stores, "_BACKOFF_S", 0.001)
        patch.setattr(stores, "_PATIENCE_S", 0.3)
        stores._open.cache_clear()
        try:
            yield store
        finally:
            stores._open.cache_clear()
            store.stalled.set()
            server.shutdown()
            server.server_close()
            thread.join()
