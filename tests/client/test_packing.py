"""Bodies that the client makes of files."""

from __future__ import annotations

import email
import errno
import io
import os
import tracemalloc
from pathlib import Path

import pytest
from faulty_server import ANSWER, faulty_server

from medad_serve.client import Client
from medad_serve.client.packing import CHUNK, Body, body_of
from medad_serve.errors import InputError
from medad_serve.serving.requests import read_request


def written(folder: Path, count: int, size: int) -> list[Path]:
    files = [folder / f"Name^Patient {number}.dcm" for number in range(count)]
    for file in files:
        file.write_bytes(os.urandom(size))
    return files


def joined(body: Body) -> bytes:
    return b"".join(body.content) if not isinstance(body.content, bytes) else body.content


def test_a_series_is_packed_in_its_order_and_read_back(tmp_path: Path) -> None:
    files = written(tmp_path, 12, CHUNK + 5)[::-1]
    body = body_of(files)
    sent = joined(body)
    assert read_request({"body": sent}, {"Content-Type": body.kind}).source == tuple(map(Path.read_bytes, files))
    message = email.message_from_bytes(b"Content-Type: " + body.kind.encode() + b"\r\n\r\n" + sent)
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/related",
        *["application/octet-stream"] * 12,
    ]


def test_no_name_of_a_file_is_sent(tmp_path: Path) -> None:
    assert b"Patient" not in joined(body_of(written(tmp_path, 3, 10)))


def test_memory_does_not_grow_with_the_series(tmp_path: Path) -> None:
    files = written(tmp_path, 4, 2 * CHUNK)
    tracemalloc.start()
    try:
        total = sum(len(part) for part in body_of(files * 8).content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 64 * CHUNK
    assert peak < 6 * CHUNK


def test_a_large_file_is_sent_in_pieces_and_a_small_one_whole(tmp_path: Path) -> None:
    small, large = written(tmp_path, 2, CHUNK // 2)
    large.write_bytes(small.read_bytes() * 7)
    assert body_of(small).content == small.read_bytes()
    assert joined(body_of(large)) == large.read_bytes()


def test_a_read_that_fails_is_an_items_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    [file] = written(tmp_path, 1, 10)
    monkeypatch.setattr(Path, "open", lambda *_, **__: Gone())
    with pytest.raises(InputError, match=r"cannot be read \(Input/output error\)"):
        body_of(file)


@pytest.mark.parametrize("place", [0, 2])
def test_a_file_of_a_series_that_is_missing_is_an_items_error(tmp_path: Path, place: int) -> None:
    files = written(tmp_path, 3, 10)
    files[place].unlink()
    with pytest.raises(InputError, match="cannot be read"):
        body_of(files)
    with faulty_server() as server, Client(server.url, token="t") as client:
        assert client.predict(files, "m")["error"]["code"] == 400
        assert server.met == []
        files[place].write_bytes(b"x")
        assert client.predict(files, "m") == ANSWER
