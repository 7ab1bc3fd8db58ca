"""Bodies that the client makes of files."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from faulty_server import ANSWER, faulty_server

from medad_serve.client import Client
from medad_serve.client.packing import CHUNK, content, zipped
from medad_serve.errors import InputError
from medad_serve.io.limits import DEFAULT_LIMITS
from medad_serve.io.members import read_members


def written(folder: Path, count: int, size: int) -> list[Path]:
    files = [folder / f"Name^Patient {number}.dcm" for number in range(count)]
    for file in files:
        file.write_bytes(os.urandom(size))
    return files


def test_a_series_is_packed_in_its_order_and_read_back(tmp_path: Path) -> None:
    files = written(tmp_path, 12, CHUNK + 5)[::-1]
    body = b"".join(zipped(files))
    assert read_members(body, DEFAULT_LIMITS) == [file.read_bytes() for file in files]
    with zipfile.ZipFile(BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_no_name_of_a_file_is_sent(tmp_path: Path) -> None:
    assert b"Patient" not in b"".join(zipped(written(tmp_path, 3, 10)))


def test_memory_does_not_grow_with_the_series(tmp_path: Path) -> None:
    files = written(tmp_path, 4, 2 * CHUNK)
    tracemalloc.start()
    try:
        total = sum(len(part) for part in zipped(files * 8))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 64 * CHUNK
    assert peak < 6 * CHUNK


def test_a_large_file_is_sent_in_pieces_and_a_small_one_whole(tmp_path: Path) -> None:
    small, large = written(tmp_path, 2, CHUNK // 2)
    large.write_bytes(small.read_bytes() * 7)
    assert content(small) == small.read_bytes()
    assert b"".join(content(large)) == large.read_bytes()  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 2])
def test_a_file_of_a_series_that_is_missing_is_an_items_error(tmp_path: Path, place: int) -> None:
    files = written(tmp_path, 3, 10)
    files[place].unlink()
    with pytest.raises(InputError, match="cannot be read"):
        content(files)
    with faulty_server() as server, Client(server.url, token="t") as client:
        assert client.predict(files, "m")["error"]["code"] == 400
        assert server.met == []
        files[place].write_bytes(b"x")
        assert client.predict(files, "m") == ANSWER
