"""Samples decoded and prepared once into one memory-mapped array, keyed by content and preparation."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medad_serve.data.samples import Sample, Table
from medad_serve.errors import InputError, MedadError
from medad_serve.files import sha256, whole_directory, write_whole
from medad_serve.io import decode
from medad_serve.prep import check_input, prepare
from medad_serve.spec import InputSpec, PrepSpec

FORMAT = 3
_DECODERS = ("medad-serve", "pydicom", "imagecodecs", "nibabel", "opencv-python-headless", "scipy", "numpy")
"""A new version of these may decode or prepare differently."""
Progress = Callable[[Iterable[Sample], int], Iterable[Sample]]


def cache_root() -> Path:
    """Return ``$MEDAD_CACHE``, else ``medad-serve`` below the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("MEDAD_CACHE") or Path(base) / "medad-serve").expanduser()


@dataclass(frozen=True)
class Prepared:
    """Every usable frame of a table: row i of ``tensor`` belongs to ``patients[i]`` and has ``labels[i]``."""

    tensor: NDArray[np.float32]
    """``(N, C, *S)``, memory-mapped read-only."""
    labels: NDArray[np.int64]
    patients: tuple[str, ...]
    digests: tuple[str, ...]
    """sha256 of the file of each row."""
    samples: tuple[Sample, ...]
    """What each row was made of; its path is known as long as this object lives, the cache keeps none."""
    fingerprint: str
    faults: tuple[str, ...]
    """One line for each file that could not be used: which and why."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Class of each row within its label, where the data set tells."""
        return tuple(sample.kind for sample in self.samples)

    def rows(self, patients: set[str], label: int | None = None) -> NDArray[np.int64]:
        """Return the rows of some patients, of one label where asked."""
        keep = [i for i, p in enumerate(self.patients) if p in patients and (label is None or self.labels[i] == label)]
        return np.array(keep, np.int64)


class _Digests:
    """sha256 of files, remembered by path, size and time, so that unchanged files are not read again."""

    def __init__(self, root: Path) -> None:
        self.path = root / "digests.json"
        try:
            self.known: dict[str, str] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            self.known = {}
        self.fresh = 0

    def of(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self.known:
            self.known[key] = sha256(path)
            self.fresh += 1
        return self.known[key]

    def save(self) -> None:
        if self.fresh:
            write_whole(self.path, json.dumps(self.known))


def fingerprint(digests: Iterable[str]) -> str:
    """Digest the content of a data set, whatever its files are called."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def load_prepared(
    table: Table,
    prep: PrepSpec,
    spec: InputSpec,
    *,
    root: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Return the prepared table from the cache, decoding it first where it is not there.

    Files that cannot be decoded are left out and listed in ``faults``; raises MedadError where none is left.
    """
    root = root or cache_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)  # prepared images are patient data
    digests = _Digests(root)
    try:
        contents = [digests.of(s.path) for s in table.samples]
    except OSError as error:
        raise MedadError(f"a file of the data cannot be read ({type(error).__name__})", "Check its rights") from None
    digests.save()
    facts = [FORMAT, *(version(name) for name in _DECODERS), prep.model_dump_json(), spec.model_dump_json(), *contents]
    entry = root / hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:32]
    if not (entry / "rows.json").is_file():
        _fill(entry, table, prep, spec, progress)
    return _open(entry, table, contents)


def _open(entry: Path, table: Table, contents: list[str]) -> Prepared:
    index = json.loads((entry / "rows.json").read_text())
    owners = [table.samples[i] for i in index["rows"]]
    return Prepared(
        tensor=np.load(entry / "tensor.npy", mmap_mode="r"),
        labels=np.array([s.label for s in owners], np.int64),
        patients=tuple(s.patient for s in owners),
        digests=tuple(contents[i] for i in index["rows"]),
        samples=tuple(owners),
        fingerprint=fingerprint(contents),
        faults=tuple(f"{table.samples[number].path}: {why}" for number, why in index["faults"]),
    )


def _prepare_file(sample: Sample, prep: PrepSpec, spec: InputSpec) -> NDArray[np.float32] | InputError:
    try:
        pixels = decode(sample.path)
        check_input(pixels, spec, prep)
        return prepare(pixels, prep).tensor
    except InputError as error:
        return error
    except Exception as error:  # one odd file must not end the training
        return InputError(500, f"internal fault ({type(error).__name__})")


def _fill(entry: Path, table: Table, prep: PrepSpec, spec: InputSpec, progress: Progress | None) -> None:
    """Decode with threads (the decoders release the GIL) into a growing file that becomes one .npy."""
    rows: list[int] = []
    faults: list[tuple[int, str]] = []  # the same content may lie elsewhere next time
    shape: tuple[int, ...] = ()
    with whole_directory(entry, keep=True) as beside, _threads() as pool:
        results = pool.map(lambda s: _prepare_file(s, prep, spec), table.samples)
        shown = progress(table.samples, len(table.samples)) if progress else table.samples
        with (beside / "raw").open("wb") as raw:
            for number, (_, found) in enumerate(zip(shown, results, strict=True)):
                if isinstance(found, InputError):
                    faults.append((number, str(found)))
                    continue
                shape = found.shape[1:]
                rows += [number] * len(found)
                raw.write(found.tobytes())
        if not rows:
            reason = f", e.g. {table.samples[faults[0][0]].path}: {faults[0][1]}" if faults else ""
            raise MedadError(f"none of {len(table.samples)} files could be used{reason}", "Check the data folder")
        _wrap(beside / "raw", beside / "tensor.npy", (len(rows), *shape))
        (beside / "rows.json").write_text(json.dumps({"rows": rows, "faults": faults}))


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that drops what waits when it is left early."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _wrap(raw: Path, target: Path, shape: tuple[int, ...]) -> None:
    """Turn raw float32 values into a .npy without holding them in memory."""
    out = np.lib.format.open_memmap(target, "w+", np.float32, shape)
    out[:] = np.memmap(raw, np.float32, "r", shape=shape)
    out.flush()
    raw.unlink()
