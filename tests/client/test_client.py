"""The client against a real server whose tokens last three seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from medad_serve.cli.predict import predict
from medad_serve.client import Client, Retries, find_key_file
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.server import Ports, Server

TOKEN_SECONDS = 3
REQUEST_BYTES = 1_000_000


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    archive(artifact, store, name="tiny")
    settings = (store / "config.properties").read_text()
    settings = settings.replace("token_expiration_min=60", f"token_expiration_min={TOKEN_SECONDS / 60}")
    settings = settings.replace("max_request_size=536870912", f"max_request_size={REQUEST_BYTES}")
    (store / "config.properties").write_text(settings)
    made = Server(store, Ports.free())
    made.start()
    yield made
    made.stop(drain=0)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url("inference"), key_file=server.key_file) as made:
        yield made


def expire() -> None:
    time.sleep(TOKEN_SECONDS + 0.5)


def untimed(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "timing_ms"}


@pytest.mark.server
def test_an_expired_token_is_renewed(client: Client, server: Server, dicom_files: list[Path]) -> None:
    before = server.key_file.read_text()
    expire()
    assert "score" in client.predict(dicom_files[0], "tiny")
    assert server.key_file.read_text() != before


@pytest.mark.server
def test_clients_that_renew_at_the_same_time_are_all_answered(server: Server, dicom_files: list[Path]) -> None:
    clients = [Client(server.url("inference"), key_file=server.key_file) for _ in range(3)]
    expire()
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(lambda c: list(c.predict_many(dicom_files[:8], "tiny")), client) for client in clients]
    assert all("score" in answer for future in futures for answer in future.result())


@pytest.mark.server
def test_answers_of_many_files_keep_their_order(client: Client, dicom_files: list[Path]) -> None:
    single = [client.predict(file, "tiny")["score"] for file in dicom_files[:12]]
    many = [answer["score"] for answer in client.predict_many(dicom_files[:12], "tiny", concurrency=12)]
    assert many == pytest.approx(single, rel=1e-6)


@pytest.mark.server
def test_a_refused_token_says_how_to_get_another(server: Server, dicom_files: list[Path]) -> None:
    with Client(server.url("inference"), token="forged") as client, pytest.raises(MedadError, match="--key-file"):
        client.predict(dicom_files[0], "tiny")


@pytest.mark.server
def test_a_missing_token_says_how_to_get_one(
    server: Server, dicom_files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDAD_KEY_FILE", raising=False)
    with Client(server.url("inference")) as client, pytest.raises(MedadError, match="none was found.*MEDAD_KEY_FILE"):
        client.predict(dicom_files[0], "tiny")


@pytest.mark.server
def test_the_key_file_of_another_server_is_named(server: Server, dicom_files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "key_file.json"
    other.write_text(json.dumps({kind: {"key": "x"} for kind in ("inference", "management", "API")}))
    with (
        Client(server.url("inference"), key_file=other, management_url=server.url("management")) as client,
        pytest.raises(MedadError, match="gives no new token"),
    ):
        client.predict(dicom_files[0], "tiny")


@pytest.mark.server
def test_a_copied_key_file_is_said_to_be_a_copy(server: Server, dicom_files: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "key_file.json"
    expire()
    copy.write_bytes(server.key_file.read_bytes())
    client = Client(server.url("inference"), key_file=copy, management_url=server.url("management"))
    with client, pytest.raises(MedadError, match="Copy that file again"):
        client.predict(dicom_files[0], "tiny")


@pytest.mark.server
def test_a_token_alone_is_enough(server: Server, dicom_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(server.url("inference"), key_file=server.key_file) as client:
        client.predict(dicom_files[0], "tiny")  # renews it where it has expired
    monkeypatch.setenv("MEDAD_TOKEN", json.loads(server.key_file.read_text())["inference"]["key"])
    done = run_predict(dicom_files[0], "--model", "tiny", "--url", server.url("inference"), "--json")
    assert done.exit_code == 0, done.exception


@pytest.mark.server
@pytest.mark.parametrize("name", ["other", "a/b", "é", "../models"])
def test_an_unknown_model_is_named(client: Client, dicom_files: list[Path], name: str) -> None:
    with pytest.raises(MedadError, match="has no model"):
        client.predict(dicom_files[0], name)


@pytest.mark.server
def test_a_file_larger_than_the_server_takes_is_an_items_error(client: Client, dicom_files: list[Path]) -> None:
    answer = client.predict(b"\0" * (3 * REQUEST_BYTES), "tiny")
    assert answer["error"]["code"] in (413, 502)
    assert "score" in client.predict(dicom_files[0], "tiny")


@pytest.mark.server
def test_options_reach_the_model(client: Client, dicom_files: list[Path]) -> None:
    assert client.predict(dicom_files[0], "tiny", heatmap="png")["heatmap"]["format"] == "png"
    assert client.predict(dicom_files[0], "tiny", policy="no-such-policy")["error"]["code"] == 422


def test_a_file_that_is_not_there_is_an_items_error() -> None:
    assert Client(token="t").predict(Path("/nonexistent"), "tiny")["error"]["code"] == 400


def test_no_server_is_one_line() -> None:
    port = Ports.free().inference
    with pytest.raises(MedadError, match=rf"no server answers at http://127\.0\.0\.1:{port}") as caught:
        Client(f"http://127.0.0.1:{port}", token="t", retries=Retries(first_contact_s=0.1)).predict(b"x", "tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", '{"inference": 3}', '{"inference": {}}'])
def test_an_unreadable_key_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "key_file.json").write_text(content)
    with pytest.raises(MedadError, match=r"key_file\.json holds no inference key"):
        Client(key_file=tmp_path / "key_file.json").predict(b"x", "tiny")


def test_the_key_file_is_found_where_servers_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDAD_KEY_FILE", raising=False)
    assert find_key_file() is None
    for place in ("model_store", ".", "model_store/.server-8080"):  # each goes before the last
        Path(place).mkdir(parents=True, exist_ok=True)
        (Path(place) / "key_file.json").write_text("{}")
        assert find_key_file() == Path(place) / "key_file.json"
    secured = Path("model_store/.server-443/key_file.json")
    secured.parent.mkdir()
    secured.write_text("{}")
    assert find_key_file("https://127.0.0.1") == secured
    monkeypatch.setenv("MEDAD_KEY_FILE", "/elsewhere.json")
    assert find_key_file() == Path("/elsewhere.json")


def run_predict(*arguments: object) -> Result:
    return CliRunner().invoke(predict, [str(a) for a in arguments])


def by_server(server: Server) -> list[object]:
    return ["--model", "tiny", "--url", server.url("inference"), "--store", server.store]


@pytest.mark.server
def test_both_ways_of_predicting_print_the_same(
    server: Server, artifact: Path, dicom_files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("no image")
    files = [*dicom_files[:3], *dicom_files[-3:], tmp_path / "text.txt", tmp_path / "absent"]
    printed = []
    for how in (["--artifact", artifact], [*by_server(server), "--concurrency", 1]):
        done = run_predict(*files, *how, "--json", "--heatmap", tmp_path / "maps")
        assert done.exit_code == 1
        printed.append([untimed(json.loads(line)) for line in done.output.splitlines()])
    assert printed[0] == printed[1]
    assert ["error" in answer for answer in printed[0]] == [False] * 6 + [True] * 2


@pytest.mark.server
def test_a_folder_and_a_list_are_one_series_either_way(
    server: Server, artifact: Path, dicom_files: list[Path], tmp_path: Path
) -> None:
    """And its map, asked for as npy, is that of the slice with the highest score."""
    series = tmp_path / "Name^Patient"
    series.mkdir()
    slices = [series / f"{number}.dcm" for number in range(2)]
    for place, file in zip(slices, dicom_files[:2], strict=True):
        place.write_bytes(file.read_bytes())
    for named in ([series], ["--series", *slices], ["--series", *slices[::-1]]):
        printed = []
        for how in (["--artifact", artifact], by_server(server)):
            maps = ["--heatmap", tmp_path / f"maps-{len(printed)}", "--heatmap-format", "npy"]
            done = run_predict(*named, *how, "--json", *maps)
            assert done.exit_code == 0, done.output
            printed.append(untimed(json.loads(done.stdout)))
            heatmap = np.load(printed[-1].pop("heatmap")["file"])
            assert heatmap.shape == (128, 128)
            assert heatmap.dtype == np.float32
        assert printed[0] == printed[1]
        assert printed[0]["files"] == len(printed[0]["slices"]) == 2
        assert [part["file"] for part in printed[0]["slices"]] == [str(file) for file in slices]  # from below
        assert printed[0]["level"] == "patient"


def test_the_table_names_the_file_of_the_highest_slice(artifact: Path, dicom_files: list[Path], tmp_path: Path) -> None:
    for number, file in enumerate(dicom_files[:2]):
        (tmp_path / f"{number}.dcm").write_bytes(file.read_bytes())
    answer = json.loads(run_predict(tmp_path, "--artifact", artifact, "--json").stdout)
    highest = max(answer["slices"], key=lambda part: part["score"])
    shown = run_predict(tmp_path, "--artifact", artifact).stdout
    assert f"highest: {highest['file']}" in shown
    assert f"{highest['score']:.4g}" in shown


@pytest.mark.server
def test_the_table_names_decision_and_fault(server: Server, dicom_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "[x].txt").write_text("no image")
    done = run_predict(dicom_files[-1], tmp_path / "[x].txt", *by_server(server))
    assert done.exit_code == 1
    assert "[x].txt" in done.output
    assert "400" in done.output
    assert run_predict(dicom_files[0], *by_server(server)).exit_code == 0


def test_heatmaps_overwrite_neither_input_nor_each_other(
    artifact: Path, dicom_files: list[Path], tmp_path: Path
) -> None:
    files = []
    for name in ("a/x", "b/x", "maps/x-2.png"):
        files.append(tmp_path / name)
        files[-1].parent.mkdir(parents=True)
        files[-1].write_bytes(dicom_files[0].read_bytes())
    done = run_predict(*files, "--artifact", artifact, "--json", "--heatmap", tmp_path / "maps")
    assert done.exit_code == 0, done.output
    written = [Path(json.loads(line)["heatmap"]["file"]) for line in done.output.splitlines()]
    assert len({*written, *files}) == 6
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert all(path.read_bytes() == dicom_files[0].read_bytes() for path in files)


def test_one_way_of_predicting_must_be_chosen(tmp_path: Path) -> None:
    for how in ([], ["--model", "m", "--artifact", str(tmp_path)]):
        assert run_predict("x", *how).exit_code == 2


def test_predicting_in_process_loads_no_torch(artifact: Path, dicom_files: list[Path]) -> None:
    code = (
        "import sys\nfrom medad_serve.cli.predict import predict\n"
        "predict(sys.argv[1:], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(dicom_files[0]), "--artifact", str(artifact)]
    assert subprocess.run(command, env=dict(os.environ), capture_output=True).returncode == 0
