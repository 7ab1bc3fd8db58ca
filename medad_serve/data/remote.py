"""Data sets at a URL (s3, gs, http and whatever else fsspec reads), mirrored into the cache.

A mirror lies in ``<cache>/remote/<digest of the URL>/<last name of the URL>``. Of each file it keeps what the
storage says of it (size, entity tag, time), so that the next call fetches only what is new or changed and
removes what is gone. Each file is fetched beside its place and renamed; a lock lets one process at a time in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from medad_serve.aws import EXTRA, refusal
from medad_serve.data.cache import cache_root
from medad_serve.errors import MedadError
from medad_serve.files import write_whole

try:
    import fcntl
except ImportError:  # Windows: two processes at once are then on their own
    fcntl = None  # type: ignore[assignment]

THREADS = 16
"""Files fetched at a time: they wait for the network, not for a core."""
TOLD_SECONDS = 20.0
SAVED_SECONDS = 30.0
"""What a kill can cost: files fetched since are fetched again."""
MANIFEST, LOCK, INCOMING = "manifest.json", ".lock", "incoming"
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "checksum", "Digest")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "Last-Modified", "modified", "created")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
Stamp = list[Any]
err = Console(stderr=True, soft_wrap=True, highlight=False)


def is_remote(place: str) -> bool:
    """Whether a data folder is a URL."""
    return "://" in place


def mirrored(url: str, *, takes_file: bool = False) -> Path:
    """Bring the mirror of ``url`` up to date and return it; of a file (with ``takes_file``) its whole folder.

    Raises MedadError where the storage cannot be opened, reached or read, or nothing lies there.
    """
    url = url.rstrip("/")
    parts = urlsplit(url)
    if parts.password:
        raise MedadError(f"the address of {parts.hostname} holds a password", "Give credentials by the environment")
    fs, root = _filesystem(url)
    try:
        if takes_file and PurePosixPath(root).suffix and fs.isfile(root):
            folder, _, name = url.rpartition("/")
            return mirrored(folder) / unquote(name)
        return _Mirror(url, fs, root).sync()
    except MedadError:
        raise
    except Exception as error:  # each storage raises kinds of its own
        raise refusal(error, url) from None


def _filesystem(url: str) -> tuple[Any, str]:
    """Open the storage of a URL afresh: listings and credentials that fsspec remembers may be old."""
    import fsspec

    protocol = url.partition("://")[0].split("::")[-1]
    try:
        fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        install = EXTRA if protocol in ("s3", "s3a") else str(error).partition("\n")[0]
        raise MedadError(f"{protocol}:// cannot be read: its package is not installed", install) from None
    except ValueError:
        raise MedadError(f"{protocol}:// is no known storage", "Write e.g. s3://BUCKET/FOLDER") from None
    except Exception as error:  # a storage may look for its credentials here
        raise refusal(error, url) from None
    return fs, str(root).rstrip("/")


@dataclass(frozen=True)
class _Entry:
    """One remote file: its name there and what tells whether it changed."""

    source: str
    stamp: Stamp

    @property
    def size(self) -> int:
        """Bytes, 0 where the storage does not say."""
        return int(self.stamp[0] or 0)


def _stamp(info: dict[str, Any]) -> Stamp:
    size = info.get("size", info.get("Size"))
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), None)
    modified = next((str(info[key]) for key in _TIMES if info.get(key)), None)
    return [size, tag, modified]


def _is_name(below: str) -> bool:
    """Whether a remote name can stand below a folder: it never leads out of it."""
    parts = below.split("/")
    return not any(p in ("", ".", "..") or "\\" in p or "\0" in p or len(p.encode()) > 255 for p in parts)


class _Mirror:
    """One URL and its copy."""

    def __init__(self, url: str, fs: Any, root: str) -> None:
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        key = hashlib.sha256(f"{endpoint}\n{url}".encode()).hexdigest()[:24]
        self.url, self.fs, self.root = url, fs, root
        self.home = cache_root() / "remote" / key
        # Layouts may read the folder's own name.
        self.files = self.home / "files" / (unquote(url.rpartition("/")[2]) or "root")

    def sync(self) -> Path:
        """List the remote files, then fetch, replace and remove until the copy is the same."""
        wanted = self._list()
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # images are patient data
        with self._alone():
            shutil.rmtree(self.home / INCOMING, ignore_errors=True)  # of a process that was killed
            self.files.mkdir(parents=True, exist_ok=True)
            known = self._known()
            have = {name: found for name, found in known.items() if self._is_here(name, found)}
            self._remove(wanted)
            missing = {n: e for n, e in wanted.items() if n not in have or have[n]["stamp"] != e.stamp}
            kept = {name: found for name, found in have.items() if name in wanted and name not in missing}
            if missing:
                self._fetch(missing, kept)
            elif kept != known:
                self._save(kept)
        return self.files

    def _list(self) -> dict[str, _Entry]:
        """Return every remote file by its name below the URL."""
        self.fs.invalidate_cache()
        found = self.fs.find(self.root, detail=True)
        if list(found) == [self.root]:
            raise MedadError(f"{self.url} is one file, not a folder", "Name the folder that it lies in")
        names: dict[str, dict[str, Any]] = {}
        strange = 0
        for source, info in found.items():
            below = unquote(urlsplit(source).path) if is_remote(source) else source
            start = unquote(urlsplit(self.root).path) if is_remote(self.root) else self.root
            below = below.removeprefix(start).removeprefix("/")
            if below.endswith("/") or not below:
                continue  # the mark of a folder
            if _is_name(below):
                names[below] = {**info, "name": source}
            else:
                strange += 1
        # A storage may hold a file "a" beside "a/b"; a folder cannot.
        above = {str(p) for name in names for p in PurePosixPath(name).parents}
        strange += len(above & names.keys())
        if strange:
            err.print(f"{strange} files of {self.url} left out: their names cannot be those of files", markup=False)
        infos = {name: info for name, info in names.items() if name not in above}
        if not infos:
            raise MedadError(f"there is no file below {self.url}", "Check the bucket and the path")
        return self._entries(infos)

    def _entries(self, infos: dict[str, dict[str, Any]]) -> dict[str, _Entry]:
        """Stamp each file, asking for it by itself where the listing tells neither tag nor time (http)."""
        stamps = {name: _stamp(info) for name, info in infos.items()}
        silent = [name for name, stamp in stamps.items() if stamp[1:] == [None, None]]
        with ThreadPoolExecutor(THREADS) as pool:
            told = pool.map(lambda name: _stamp(self.fs.info(infos[name]["name"])), silent)
            stamps |= dict(zip(silent, told, strict=True))
        return {name: _Entry(info["name"], stamps[name]) for name, info in infos.items()}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time into the mirror."""
        with (self.home / LOCK).open("w") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    err.print(f"waiting for another process that mirrors {self.url}", markup=False)
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _known(self) -> dict[str, dict[str, Any]]:
        try:
            files: dict[str, dict[str, Any]] = json.loads((self.home / MANIFEST).read_bytes())["files"]
        except (OSError, ValueError, KeyError):
            return {}
        return files

    def _save(self, files: dict[str, dict[str, Any]]) -> None:
        write_whole(self.home / MANIFEST, json.dumps({"url": self.url, "files": files}))

    def _is_here(self, name: str, found: dict[str, Any]) -> bool:
        """Whether a file lies in the mirror as it was fetched."""
        return self._as_fetched(self.files / name) == found.get("here")

    @staticmethod
    def _as_fetched(path: Path) -> list[int] | None:
        try:
            stat = path.lstat()
        except OSError:
            return None
        return [stat.st_size, stat.st_mtime_ns]

    def _remove(self, wanted: dict[str, _Entry]) -> None:
        """Remove files that are no longer there, and folders that this leaves empty."""
        for path in sorted(self.files.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # not empty
                    path.rmdir()
            elif path.relative_to(self.files).as_posix() not in wanted:
                path.unlink(missing_ok=True)

    def _fetch(self, missing: dict[str, _Entry], done: dict[str, dict[str, Any]]) -> None:
        """Fetch with threads; what is there so far is remembered, however this ends."""
        total = sum(entry.size for entry in missing.values())
        free = shutil.disk_usage(self.home).free
        if total > free:
            raise MedadError(
                f"{self.url} takes {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {self.home}",
                "Make room, or name another cache in MEDAD_CACHE",
            )
        err.print(f"mirroring {len(missing)} files ({total / 1e6:.1f} MB) of {self.url} to {self.files}", markup=False)
        (self.home / INCOMING).mkdir(exist_ok=True)
        pool = ThreadPoolExecutor(THREADS)
        saved = time.monotonic()
        try:
            waiting = {pool.submit(self._fetch_one, name, entry): name for name, entry in missing.items()}
            for future in _told(waiting, missing, total):
                if (here := future.result()) is not None:
                    name = waiting[future]
                    done[name] = {"stamp": missing[name].stamp, "here": here}
                if time.monotonic() - saved > SAVED_SECONDS:
                    self._save(done)
                    saved = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            self._save(done)
            shutil.rmtree(self.home / INCOMING, ignore_errors=True)

    def _fetch_one(self, name: str, entry: _Entry) -> list[int] | None:
        """Fetch one file into its place; None where it has vanished since it was listed."""
        beside, target = self.home / INCOMING / token_hex(8), self.files / name
        try:
            self.fs.get_file(entry.source, str(beside))
        except FileNotFoundError:
            return None
        if entry.stamp[0] is not None and beside.stat().st_size != entry.size:
            raise MedadError(f"{self.url}/{name} changed while it was read", "Try again")
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.replace(target)
        return self._as_fetched(target)


def _told(waiting: dict[Future[Any], str], missing: dict[str, _Entry], total: int) -> Iterator[Future[Any]]:
    """Yield what has ended and show how far it is: a bar in a terminal, else a line now and then."""
    last, fetched = time.monotonic(), 0
    columns = ("fetching", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total)
        for count, future in enumerate(as_completed(waiting), 1):
            yield future
            fetched += missing[waiting[future]].size
            bar.update(task, completed=fetched)
            if not err.is_terminal and time.monotonic() - last > TOLD_SECONDS:
                err.print(f"{count} of {len(waiting)} files, {fetched / 1e6:.0f} MB", markup=False)
                last = time.monotonic()
