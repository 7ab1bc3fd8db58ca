"""A server asked in every way with marks wherever a request has room for any, and what of them it leaves behind."""

from __future__ import annotations

import io
import json
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import httpx
import nibabel
import numpy as np
from click.testing import CliRunner
from leaks import cut, fill, traces, traces_in, word
from PIL import Image, PngImagePlugin
from pydicom.dataset import FileDataset

from medad_serve.cli.main import cli
from medad_serve.export.archive import archive
from medad_serve.server import Ports, Server

DICOM = "application/dicom"
BYTES = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"


class Visit(NamedTuple):
    """What came of everything that was sent."""

    server: Server
    sent: set[bytes]
    answers: list[httpx.Response]
    asked: list[str]
    """Path and query of each answer's request."""
    printed: str
    """By the client's command."""
    left: dict[Path, set[bytes]]
    """Files with a mark in them, while the server ran and after its end."""
    read: int
    """Files in which marks were looked for."""

    @property
    def repeated(self) -> list[str]:
        """Paths of requests whose answer repeats a mark that was not in the path itself.

        But where no handler is asked: TorchServe names an unknown model, and quotes a form that is none.
        """
        found = []
        for answer, asked in zip(self.answers, self.asked, strict=True):
            is_form = answer.request.headers.get("Content-Type") == FORM
            if is_form and b"ErrorDataDecoderException" in answer.content:
                continue
            if not traces(answer.content) <= traces(asked.encode()):
                found.append(f"{answer.status_code} {asked}")
        return found


def dicom(ds: FileDataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def zipped(members: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = word().encode()
        for member in members:
            archive.writestr(f"{word()}/{word()}.dcm", member)
    return buffer.getvalue()


def other_files(pixels: np.ndarray) -> list[bytes]:
    """NIfTI, .npy, PNG and JPEG with marks in header, comment and text, good and cut short."""
    image = nibabel.Nifti1Image(pixels[..., None], np.eye(4))
    image.header["descrip"], image.header["db_name"] = word(), word()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", word().encode()))
    npy, png, jpeg = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, pixels)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", word())
    gray = Image.fromarray((pixels % 255).astype(np.uint8))
    gray.save(png, "png", pnginfo=notes)
    gray.save(jpeg, "jpeg", comment=word().encode())
    header = b"\x93NUMPY\x01\x00\x76\x00" + f"{{'descr': '{word()}', '{word()}': 1}}".encode().ljust(118)
    files = [bytes(image.to_bytes()), npy.getvalue(), png.getvalue(), jpeg.getvalue()]
    return [*files, header, *(damaged for file in files for damaged in list(cut(file, 3))[:3])]


def marked_bodies(make: Callable[[int], FileDataset], pixels: np.ndarray) -> list[bytes]:
    """Return a good file, one with a mark in every element, and damaged ones; series as ZIP, good and bad.

    ``make`` returns the data set of a slice by its number.
    """
    good = dicom(fill(make(1), spare=True))
    full = dicom(fill(make(1), spare=False))
    series = [fill(make(number), spare=True) for number in range(3)]
    for ds in series:
        ds.SeriesInstanceUID = series[0].SeriesInstanceUID
    package = zipped([dicom(ds) for ds in series])
    mixed = zipped([good, full, word().encode()])
    broken = [*cut(full, 1), *cut(package, 2)]
    words = [word().encode(), b"", json.dumps({"patient": word()}).encode(), b"PK\3\4" + word().encode()]
    return [good, full, package, mixed, *broken, *words, *other_files(pixels)]


def pay_visit(artifact: Path, bodies: list[bytes], root: Path) -> Visit:
    """Serve an artifact from ``root``, send everything there is to send, end the server, and look for marks."""
    archive(artifact, root / "store", name="tiny", max_batch_delay_ms=1)
    for name in ("tmp", "files"):
        (root / name).mkdir()
    server = Server(root / "store", Ports.free())
    with mock.patch.object(tempfile, "tempdir", str(root / "tmp")):  # where the server gets its temporary directory
        server.start(timeout=60)
        try:
            answers, asked = [], []
            for answer, path in speak(server, bodies):
                answers.append(answer)
                asked.append(path)
            shout(server)
            printed = command(server, bodies, root / "files")
            places = (root / "store", root / "tmp")
            left = traces_in(*places)
            read = sum(path.is_file() for place in places for path in place.rglob("*"))
        finally:
            if server.process():
                server.stop(drain=5)
    sent = {mark for body in bodies for mark in traces(body)}
    return Visit(server, sent, answers, asked, printed, left | traces_in(*places), read)


def speak(server: Server, bodies: list[bytes]) -> Iterator[tuple[httpx.Response, str]]:
    """Send every body in every form, then requests that have marks everywhere but in the body."""
    keys = json.loads(server.key_file.read_text())
    token = {"Authorization": f"Bearer {keys['inference']['key']}"}
    master = {"Authorization": f"Bearer {keys['management']['key']}"}
    with httpx.Client(trust_env=False, timeout=120) as http:

        def ask(method: str, kind: str, path: str, **how: Any) -> tuple[httpx.Response, str]:
            return http.request(method, server.url(kind) + path, **how), path

        def predict(headers: dict[str, str] | None = None, **how: Any) -> tuple[httpx.Response, str]:
            return ask("POST", "inference", "/predictions/tiny", headers={**token, **(headers or {})}, **how)

        for body in bodies:
            for kind in (BYTES, DICOM, "application/json", "text/plain", FORM):
                yield predict({"Content-Type": kind}, content=body)
            yield predict(files={"data": (f"{word()}.dcm", body)}, data={word(): word()})
            yield predict(files=[(word(), (f"{word()}.dcm", body, f"image/{word()}")) for _ in range(2)])
            for heatmap in ("png", word()):
                yield predict({"X-Medad-Heatmap": heatmap, "Content-Type": BYTES}, content=body)
            yield ask("POST", "inference", "/v2/models/tiny/infer", headers=token, content=body)
        part = f'--{word()}\r\nContent-Disposition: form-data; name="{word()}"; filename="{word()}\r\n\r\n{word()}'
        for boundary in (word(), ""):
            yield predict({"Content-Type": f"multipart/form-data; boundary={boundary}"}, content=part.encode())
        large = word().encode() + bytes(8 * 2**20)  # parts past TorchServe's 6.5 MB might go through a file
        yield predict(files={"data": (word(), large), word(): (word(), large)})
        tensor = {"name": word(), "shape": [1, 1, 64, 64], "datatype": "FP32", "data": [0.5] * 4096}
        for inputs in (
            [tensor],
            [{**tensor, "datatype": word()}],
            [{**tensor, "data": [word()]}],
            word(),
            [tensor] * 2,
        ):
            request = {"id": word(), "parameters": {word(): word()}, "inputs": inputs, word(): word()}
            for path in ("/v2/models/tiny/infer", "/predictions/tiny"):
                yield ask("POST", "inference", path, headers=token, json=request)
        odd = {word(): word(), "X-Medad-Policy": word(), "User-Agent": word(), "Cookie": word(), "x-request-id": word()}
        yield predict({**odd, "Content-Type": f"text/{word()}; charset={word()}"}, content=bodies[0])
        yield predict({"Content-Type": BYTES, "Content-Encoding": word(), "Expect": word()}, content=bodies[0])
        for key in (token, {}, {"Authorization": f"Bearer {word()}"}, {"Authorization": word()}):
            for method, path in odd_paths("tiny"):
                yield ask(method, "inference", path, headers=key)
        for key in (master, token, {"Authorization": f"Bearer {word()}"}):
            for method, path in odd_paths("tiny"):
                if method != "DELETE":
                    yield ask(method, "management", path, headers=key)
        for path in (f"/metrics?name[]={word()}", f"/metrics/{word()}", f"/{word()}"):
            yield ask("GET", "metrics", path)


def odd_paths(model: str) -> Iterator[tuple[str, str]]:
    for path in (
        "/predictions",
        "/models",
        "/v1/models",
        "/v2/models",
        "/explanations",
        "/wfpredict",
        "/workflows",
        "",
    ):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            yield method, f"{path}/{word()}?{word()}={word()}"
    for name in (f"{model}/{word()}", f"{model}?patient={word()}", f"{word()}%2F..%2F{word()}", f"{word()}%0A{word()}"):
        yield "POST", f"/predictions/{name}"
        yield "GET", f"/models/{name}"
    yield "PUT", f"/models/{model}?min_worker={word()}"
    yield "POST", f"/models?url={word()}.mar&model_name={word()}"
    yield "GET", f"/token?type={word()}"
    yield "GET", f"/ping?{word()}"
    yield "POST", f"/v1/models/{word()}:predict"
    yield "POST", f"/invocations?{word()}"


def shout(server: Server) -> None:
    """Send what no HTTP library would: broken lines, a header without end, bodies that stop half-way."""
    token = json.loads(server.key_file.read_text())["inference"]["key"]
    head = f"POST /predictions/tiny HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    marked = " ".join(word() for _ in range(2000))
    for kind in ("inference", "management", "metrics"):
        address = urlsplit(server.url(kind))
        for text in (
            f"{word()}\r\n\r\n",
            f"{word()} /{word()} {word()}\r\n{word()}\r\n\r\n",
            f"GET /{marked} HTTP/1.1\r\n\r\n",
            f"GET / HTTP/1.1\r\n{word()}: {marked}\r\n\r\n",
            f"{head}Content-Length: {word()}\r\n\r\n{word()}",
            f"{head}Content-Length: 100000\r\n\r\n{word()}",
            f"{head}Content-Length: 99999999999\r\n\r\n{word()}",
            f"{head}Transfer-Encoding: chunked\r\n\r\n{word()}\r\n{word()}",
            f"{head}Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 999\r\n\r\n--x\r\n{word()}",
        ):
            with socket.create_connection((address.hostname or "", address.port or 0), timeout=2) as raw:
                raw.sendall(text.encode())
                raw.settimeout(0.2)
                try:
                    raw.recv(4096)
                except OSError:
                    continue


def command(server: Server, bodies: list[bytes], folder: Path) -> str:
    """Ask by ``medad-serve predict`` for every body, the overlays too; return what it printed."""
    files = []
    for index, body in enumerate(bodies):
        files.append(folder / f"{index}.bin")
        files[-1].write_bytes(body)
    how = ["--model", "tiny", "--url", server.url("inference"), "--key-file", str(server.key_file)]
    text = ""
    for form in (["--json"], ["--heatmap", str(folder / "overlays")]):
        text += CliRunner().invoke(cli, ["predict", *map(str, files), *how, *form]).output
    return text
