"""Stores behind an address: buckets (``s3://``, ``gs://``, ``az://``), web servers, folders.

Their library, obstore, finds credentials by itself, tries again what may succeed, and is asked for
from any thread. An address is shown and stored without what may be secret: a password before the
host, and the query, which may be a signature.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from featx.exceptions import MissingExtraError, StoreError, reason

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# `Path` makes one slash of two, and is undone here.
_ADDRESS = re.compile(r"(s3|gs|az|https?):/{1,2}(?=[^/])", re.IGNORECASE)
_BUCKETS = ("s3", "gs", "az")
_URL = re.compile(r"https?://[^\s,\"')]+")
_STATUS = re.compile(r"status code: (\d{3}(?: [A-Z][\w-]*)*)")
# Where a cloud's machines ask for credentials when the environment has none.
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal")
_NOT_FOUND = "no such object"

_RETRIES = 6
_BACKOFF_S = 0.1
_PATIENCE_S = 60.0  # for the next bytes; a large object may take longer as a whole
_WHOLE_S = 3600.0
_PAGE = 1000
_PART_BYTES = 1 << 17
_OPEN_STORES = 256


class Entry(NamedTuple):
    """An object as its store lists it; -1 and "" for what the store does not say."""

    name: str
    size: int
    modified_ns: int
    etag: str

    def stamp(self) -> tuple[int, int, int, int, int]:
        """Return a stamp, see `featx.files.identity.STAMP`; the ETag takes the inode's place."""
        if not self.etag:
            return (-1, -1, -1, -1, -1) if self.modified_ns < 0 else (*self[1:3], -1, -1, -1)
        digest = hashlib.sha256(self.etag.encode()).digest()
        return self.size, max(0, self.modified_ns), int.from_bytes(digest[:8], "big") >> 1, -1, -1


def as_address(value: object) -> str | None:
    """Return the address of a bucket or web server that text or a path is, else None.

    >>> as_address(Path("s3://bucket/photos"))
    's3://bucket/photos'
    """
    if not isinstance(value, str | os.PathLike):
        return None
    text = os.fspath(value)
    match = _ADDRESS.match(text) if isinstance(text, str) else None
    return None if match is None else f"{match[1].lower()}://{text[match.end() :]}"


def is_bucket(address: str) -> bool:
    """Return whether an address is of a bucket, which can be listed and written."""
    return address.partition("://")[0] in _BUCKETS


def shown(address: str) -> str:
    """Return an address without what may be secret.

    >>> shown("https://ann:pw@host/photos/1.jpg?signature=abc")
    'https://host/photos/1.jpg'
    """
    if is_bucket(address):
        scheme, _, rest = address.partition("://")
        bucket, slash, name = rest.partition("/")
        return f"{scheme}://{bucket.rpartition('@')[2]}{slash}{name}"
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def child(address: str, path: str) -> str:
    """Return the address of a path below another address."""
    if is_bucket(address):
        return f"{address.rstrip('/')}/{path}"
    return f"{address.partition('?')[0].rstrip('/')}/{quote(path)}"


def below(root: str, path: str) -> str:
    """Return the path or address that `path` stands for, from a folder or the address of one."""
    if address := as_address(path):
        return address
    base = as_address(root)
    return child(base, path) if base else os.path.join(root, path)


def parent(address: str) -> str:
    """Return the address of the folder of an object."""
    path = address if is_bucket(address) else address.partition("?")[0]
    return path.rpartition("/")[0]


def address_name(address: str) -> str:
    """Return the last part of an address, by which data are called.

    >>> address_name("https://host/some%20photos/?key=1")
    'some photos'
    """
    name = shown(address).rstrip("/").rpartition("/")[2]
    return name if is_bucket(address) else unquote(name)


@dataclass(frozen=True)
class Store:
    """What lies below an address; names are relative to it, with ``/``."""

    root: str = field(repr=False)  # what obstore opens; may hold what is secret
    prefix: str = ""

    @classmethod
    def below(cls, address: str) -> Store:
        """Return the store of all that is below the address of a bucket or of a ``file://``."""
        if address.startswith("file:"):
            return cls(address)
        scheme, _, rest = address.partition("://")
        bucket, _, prefix = rest.partition("/")
        if "@" in bucket:
            raise StoreError(
                f"expected an address such as {scheme}://bucket/folder, received one with "
                f"credentials, of {shown(address)}: put these into the environment",
                "its address has credentials",
            )
        return cls(f"{scheme}://{bucket}", prefix.strip("/"))

    @classmethod
    def of_object(cls, address: str) -> tuple[Store, str]:
        """Return the store of an object, and its name there."""
        if is_bucket(address):
            store = cls.below(address)
            return cls(store.root), store.prefix
        parts = urlsplit(address)
        if parts.query:
            return cls(address), ""
        # One connection serves all objects of a host.
        return cls(f"{parts.scheme}://{parts.netloc}"), unquote(parts.path).strip("/")

    @staticmethod
    def require() -> None:
        """Raise `MissingExtraError` where the library is not installed."""
        try:
            import obstore  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                "obstore", extra="remote", purpose="reading and writing stores"
            ) from error

    def address(self, name: str = "") -> str:
        """Return the address of an object, to be shown."""
        parts = [part for part in (self.prefix, name) if part]
        return shown("/".join([self.root.rstrip("/"), *parts]))

    def entries(self) -> Iterator[Entry]:
        """Yield what the store lists, in no certain order; `StoreError` if it cannot be listed."""
        with self._asking("list", ""):
            for page in _opened(self.root).list(self.prefix or None, chunk_size=_PAGE):
                for meta in page:
                    name = meta["path"]
                    yield _entry(meta, name[len(self.prefix) + 1 :] if self.prefix else name)

    def entry(self, name: str) -> Entry | None:
        """Return what the store says of an object, None where it is not there."""
        try:
            with self._asking("read", name):
                return _entry(_opened(self.root).head(self._full(name)), name)
        except StoreError as error:
            if error.reason == _NOT_FOUND:
                return None
            raise

    def read(self, name: str, *, most_bytes: int | None = None) -> bytes:
        """Return an object's bytes; one of more than `most_bytes` is refused unread."""
        with self._asking("read", name):
            result = _opened(self.root).get(self._full(name))
            size = result.meta["size"]
            if most_bytes is not None and size > most_bytes:
                why = f"too large: {size:,} bytes, the limit is {most_bytes:,}"
                raise StoreError(f"{self.address(name)} is {why}", why)
            return bytes(result.bytes())

    def fetch(self, name: str, target: Path) -> None:
        """Write an object's bytes into a file, a few MiB at a time."""
        with self._asking("read", name), target.open("wb") as file:
            for chunk in _opened(self.root).get(self._full(name)):
                file.write(chunk)

    def open(self, name: str) -> IO[bytes]:
        """Return an object as a file of which only those parts are read that are asked for."""
        entry = self.entry(name)
        if entry is None:
            raise StoreError(f"{self.address(name)} is not there: {_NOT_FOUND}", _NOT_FOUND)
        return cast(IO[bytes], _Parts(self, name, entry.size))

    def read_part(self, name: str, start: int, end: int) -> bytes:
        """Return some bytes of an object."""
        with self._asking("read", name):
            part = _opened(self.root).get_range(self._full(name), start=start, end=end)
            return bytes(part)

    def write(self, name: str, file: Path) -> None:
        """Write a file as an object, which appears whole."""
        with self._asking("write", name):
            _opened(self.root).put(self._full(name), file)

    def _full(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix and name else self.prefix or name

    @contextmanager
    def _asking(self, verb: str, name: str) -> Iterator[None]:
        """Turn what obstore raises into `StoreError`."""
        try:
            yield
        except (StoreError, MissingExtraError):
            raise
        # obstore raises errors of its own and several built-in ones.
        except Exception as error:
            why = _short(error)
            raise StoreError(
                f"cannot {verb} {self.address(name)}: {why}. See that the address is right, and "
                "that the environment has the credentials (docs/stores.md)",
                why,
            ) from None  # the cause would show the whole address in a traceback


@lru_cache
def _copies() -> TemporaryDirectory[str]:
    """Return a folder that is there until the process ends."""
    return TemporaryDirectory(prefix="featx-")


def local_copy(path: str | os.PathLike[str]) -> Path:
    """Return the file of a path, or a copy, for this process, of what lies behind an address."""
    address = as_address(path)
    if address is None:
        return Path(path)
    store, name = Store.of_object(address)
    entry = store.entry(name)
    if entry is None:
        raise StoreError(
            f"{shown(address)} is not there: see that the address is right", _NOT_FOUND
        )
    version = hashlib.sha256(repr((address, entry)).encode()).hexdigest()
    target = Path(_copies().name, version[:16], address_name(address))
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        unfinished = target.with_name(f".{target.name}")
        store.fetch(name, unfinished)
        unfinished.replace(target)
    return target


class _Parts(io.RawIOBase):
    """An object as a file; parts that were read are kept."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size, self._at = store, name, size, 0
        self._parts: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        number, start = divmod(self._at, _PART_BYTES)
        view = memoryview(buffer).cast("B")
        if not len(view) or self._at >= self._size:
            return 0
        if number not in self._parts:
            first = number * _PART_BYTES
            end = min(first + _PART_BYTES, self._size)
            self._parts[number] = self._store.read_part(self._name, first, end)
        part = self._parts[number][start : start + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


def _entry(meta: Any, name: str) -> Entry:
    # obstore says 1970 where the store says nothing.
    modified_ns = int(meta["last_modified"].timestamp()) * 1_000_000_000
    return Entry(name, meta["size"], modified_ns or -1, meta["e_tag"] or "")


def _short(error: Exception) -> str:
    """Return in a few words why a store did not do what it was asked for."""
    kind, text = type(error).__name__, str(error)
    if isinstance(error, FileNotFoundError):
        return _NOT_FOUND
    if any(host in text for host in _NO_CREDENTIALS):
        return "no credentials were found"
    status = _STATUS.search(text)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or (
        status and status[1][:3] in ("401", "403")
    ):
        return "access denied"
    if status:
        return f"the server answered {status[1]}"
    if "TimedOut" in text or "Timeout" in text:
        return "the server did not answer in time"
    if "HTTP error" in text or "reqwest" in text:
        return "the connection failed"
    return _URL.sub(lambda url: shown(url[0]), reason(error))


def _opened(root: str) -> Any:
    """Return the store of obstore at a root."""
    return _open(root, os.getpid())  # connections are a process's own


@lru_cache(_OPEN_STORES)
def _open(root: str, _process: int) -> Any:
    Store.require()
    from obstore.store import HTTPStore, LocalStore, from_url

    if root.startswith("file:"):
        from urllib.request import url2pathname

        return LocalStore(url2pathname(urlsplit(root).path), mkdir=True)
    seconds = {"connect_timeout": 10.0, "read_timeout": _PATIENCE_S, "timeout": _WHOLE_S}
    client: dict[str, Any] = {name: timedelta(seconds=value) for name, value in seconds.items()}
    # An endpoint without TLS, as of a store in the same network, is the user's to name.
    client["allow_http"] = True
    retries: Any = {
        "max_retries": _RETRIES,
        "backoff": {"init_backoff": timedelta(seconds=_BACKOFF_S)},
    }
    if is_bucket(root):
        return from_url(root, client_options=client, retry_config=retries)
    parts = urlsplit(root)
    user, _, host = parts.netloc.rpartition("@")
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        client["default_headers"] = {"Authorization": f"Basic {token}"}
    plain = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    return HTTPStore.from_url(plain, client_options=client, retry_config=retries)
