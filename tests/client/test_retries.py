"""What the client does about a server that fails, against a stand-in that fails by a script."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from click.testing import CliRunner
from faulty_server import ANSWER, BUSY, CUT, DEATH, DROP, Fault, FaultyServer, faulty_server

from medad_serve.cli.predict import predict
from medad_serve.client import Client, Retries
from medad_serve.client.retries import MOST_DEATHS, MOST_KILLERS, SILENT_CONNECT_S
from medad_serve.errors import MedadError
from medad_serve.server import Ports

QUICK = Retries(total_s=5, first_contact_s=5, first_s=0.01, longest_s=0.05)


def asked(server: FaultyServer, retries: Retries = QUICK, *, timeout: float = 5) -> Client:
    return Client(server.url, token="t", retries=retries, timeout=timeout)


@pytest.mark.parametrize(
    "fault",
    [DROP, CUT, BUSY, DEATH, Fault(status=502), Fault(status=504), Fault(status=507), Fault(delay_s=2, drops=True)],
    ids=["dropped", "cut", "503", "worker died", "502", "504", "507", "late"],
)
def test_what_was_not_answered_is_asked_again(fault: Fault) -> None:
    with faulty_server(fault, fault) as server, asked(server, timeout=1 if fault.delay_s else 5) as client:
        assert client.predict(b"x", "m") == ANSWER
        assert server.bodies == [b"x"]
        assert len(server.met) == 3


@pytest.mark.parametrize("status", [400, 403, 408, 413, 415, 422, 429])
def test_what_was_refused_is_never_asked_again(status: int) -> None:
    refusal = Fault(status=status, body={"error": {"code": status, "message": "no", "hint": ""}})
    with faulty_server(refusal) as server, asked(server) as client:
        assert client.predict(b"x", "m") == refusal.body
        assert len(server.met) == 1


def test_a_fault_within_the_model_is_an_answer() -> None:
    fault = Fault(status=500, body={"error": {"code": 500, "message": "internal fault", "hint": ""}})
    with faulty_server(fault) as server, asked(server) as client:
        assert client.predict(b"x", "m") == fault.body
        assert len(server.met) == 1


def test_pauses_grow_and_differ() -> None:
    """Random pauses up to 0.02, 0.04, 0.08 and 0.16 s: the last is eight times the first on average."""
    retries = Retries(total_s=5, first_contact_s=5, first_s=0.02, longest_s=10)
    firsts, lasts = [], []
    for _ in range(12):
        with faulty_server(*[BUSY] * 4) as server, asked(server, retries) as client:
            client.predict(b"x", "m")
        gaps = [after - before for before, after in zip(server.met, server.met[1:], strict=False)]
        firsts.append(gaps[0])
        lasts.append(gaps[-1])
    assert sum(lasts) > 2 * sum(firsts)
    assert max(lasts) - min(lasts) > 0.02


@pytest.mark.parametrize(
    "told", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)], ids=["seconds", "date"]
)
def test_the_servers_own_pause_is_kept(told: Callable[[], str]) -> None:
    with faulty_server(Fault(headers={"Retry-After": told()})) as server, asked(server) as client:
        assert client.predict(b"x", "m") == ANSWER
        assert 0.9 < server.met[1] - server.met[0] < 30


def test_a_pause_longer_than_the_patience_is_not_waited_for() -> None:
    with faulty_server(Fault(headers={"Retry-After": "3600"})) as server, asked(server) as client:
        start = time.monotonic()
        answer = client.predict(b"x", "m")
        assert time.monotonic() - start < 60
        assert answer["answered"] is False
        assert answer["error"]["code"] == 503


def test_tries_are_bounded() -> None:
    retries = Retries(tries=3, first_s=0.01, longest_s=0.01)
    with faulty_server(*[BUSY] * 10) as server, asked(server, retries) as client:
        answer = client.predict(b"x", "m")
        assert len(server.met) == 3
    assert answer["error"]["message"] == "busy (3 tries)"


def test_a_request_that_workers_die_of_is_given_up() -> None:
    with faulty_server(*[DEATH] * 20) as server, asked(server) as client:
        assert client.predict(b"x", "m")["answered"] is False
        assert len(server.met) == 1 + MOST_DEATHS


def test_only_what_workers_die_of_is_given_up() -> None:
    """Good files share their batches with killers from the first to the last, and are answered all the same."""
    killers = [b"killer 1", b"killer 2", b"killer 3"]
    sent = [body for number in range(4) for body in (b"good %d" % number, *killers)]
    with faulty_server() as server, asked(server, Retries(total_s=5, first_s=0.01, longest_s=0.02)) as client:
        server.deadly.update(killers)
        answers = list(client.predict_many(sent, "m", concurrency=8))
    assert [answer.get("answered", True) for answer in answers] == [body not in killers for body in sent]
    assert [answer for body, answer in zip(sent, answers, strict=True) if body not in killers] == [ANSWER] * 4


def test_a_server_whose_workers_die_of_everything_is_not_asked_for_ever() -> None:
    with faulty_server(*[DEATH] * 1000) as server, asked(server) as client:
        for _ in range(MOST_KILLERS + 10):
            assert client.predict(b"x", "m")["answered"] is False
        assert len(server.met) == MOST_KILLERS * (1 + MOST_DEATHS) + 10


def test_a_server_that_is_gone_for_good_costs_its_silence_once() -> None:
    """Fifty requests after the server ended wait together, not one after the other."""
    retries = Retries(total_s=1, first_s=0.01, longest_s=0.1)
    with faulty_server() as server:
        client = asked(server, retries)
        assert client.predict(b"x", "m") == ANSWER
    start = time.monotonic()
    with client:
        answers = list(client.predict_many([b"x"] * 50, "m", concurrency=4))
    assert time.monotonic() - start < 10  # one after another: 12
    assert [answer["answered"] for answer in answers] == [False] * 50


def test_a_server_started_again_answers_what_was_left() -> None:
    with faulty_server() as server:
        client = asked(server, Retries(total_s=20, first_s=0.02, longest_s=0.1))
        assert client.predict(b"0", "m") == ANSWER
        port = server.server_address[1]
    sent = [str(n).encode() for n in range(20)]
    answers: list[object] = []
    with client:
        asking = threading.Thread(target=lambda: answers.extend(client.predict_many(sent, "m")))
        asking.start()
        time.sleep(0.5)
        with faulty_server(port=port) as again:
            asking.join(15)
            assert answers == [ANSWER] * 20
            assert sorted(again.bodies) == sorted(sent)


def test_nobody_there_is_told_soon() -> None:
    start = time.monotonic()
    client = Client(f"http://127.0.0.1:{Ports.free().inference}", token="t", retries=Retries(first_contact_s=0.5))
    with client, pytest.raises(MedadError, match="no server answers"):
        list(client.predict_many([b"x"] * 20, "m"))
    assert time.monotonic() - start < 3


@contextmanager
def unreachable(port: int = 0) -> Iterator[str]:
    """The address of a socket whose queue is full: the kernel drops what would connect, as a firewall does."""
    with socket.socket() as listening, ExitStack() as stack:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_cannot_be_reached_is_told_soon() -> None:
    start = time.monotonic()
    with unreachable() as url, Client(url, token="t", retries=Retries(first_contact_s=1)) as client:
        with pytest.raises(MedadError, match="no server answers"):
            list(client.predict_many([b"x"] * 100, "m"))
        assert time.monotonic() - start < 3


def test_a_server_that_cannot_be_reached_any_more_costs_its_silence_once() -> None:
    with faulty_server() as server:
        client = asked(server, Retries(total_s=2, first_s=0.01, longest_s=0.1), timeout=30)
        assert client.predict(b"x", "m") == ANSWER
        port = server.server_address[1]
    start = time.monotonic()
    with unreachable(port), client:
        answers = list(client.predict_many([b"x"] * 100, "m", concurrency=4))
        assert time.monotonic() - start < 30  # one after another: 50
    assert [answer["answered"] for answer in answers] == [False] * 100


def test_a_silence_of_long_ago_is_forgotten() -> None:
    """A client that asks now and then goes on asking after the next fault as after its first."""
    with faulty_server(*[BUSY] * 500) as server, asked(server, Retries(total_s=2, first_s=0.01, longest_s=0.01)) as c:
        assert c.predict(b"x", "m")["answered"] is False
        server.script[:] = [BUSY] * 3
        time.sleep(SILENT_CONNECT_S + 0.1)
        assert c.predict(b"x", "m") == ANSWER


def test_a_token_that_ends_in_the_middle_loses_no_answer() -> None:
    refused = Fault(status=400, body={"code": 400, "type": "InvalidKeyException", "message": "expired"})
    with faulty_server() as server, asked(server) as client:
        answers = client.predict_many([b"x"] * 3, "m", concurrency=1)
        first = next(answers)
        server.script += [refused] * 5
        rest = list(answers)
    assert first == ANSWER
    assert "--key-file" in [answer for answer in rest if "error" in answer][-1]["error"]["hint"]
    assert len(rest) == 2


def test_a_large_file_and_a_series_are_sent_whole_again(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(range(256)) * 2**14)
    with faulty_server(DROP, BUSY) as server, asked(server) as client:
        assert client.predict(tmp_path / "large", "m") == ANSWER
        assert server.bodies[0] == (tmp_path / "large").read_bytes()
        server.script.append(CUT)
        assert client.predict([tmp_path / "large"] * 3, "m") == ANSWER
        assert server.bodies[1].count((tmp_path / "large").read_bytes()) == 3


def run(server: FaultyServer, *arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(
        predict, [str(a) for a in (*arguments, "--model", "m", "--url", server.url, "--token", "t")]
    )
    return done.exit_code, done.stdout, done.stderr


def test_what_was_never_answered_is_counted_and_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file in files:
        file.write_bytes(file.name.encode())
    with faulty_server(Fault(status=200, body=ANSWER), *[DROP] * 50) as server:
        code, out, err = run(server, *files, "--json", "--concurrency", 1, "--retry-for", 0.3)
    assert code == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("answered", True) for line in lines] == [True, False, False]
    assert err.splitlines() == ["2 of 3 were never answered:", f"  2: {files[1]}", f"  3: {files[2]}"]


def test_an_error_that_was_answered_is_not_called_unanswered(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    refusal = Fault(status=422, body={"error": {"code": 422, "message": "no", "hint": ""}})
    with faulty_server(refusal) as server:
        code, _, err = run(server, tmp_path / "a")
    assert (code, err) == (1, "")


def test_without_retries_a_request_is_sent_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with faulty_server(BUSY) as server:
        code, _, err = run(server, tmp_path / "a", "--retry-for", 0)
        assert len(server.met) == 1
    assert code == 1
    assert "1 of 1 were never answered" in err
