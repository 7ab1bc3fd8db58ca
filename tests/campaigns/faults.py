"""Faults on one real server under load, as a table: sent, answered, retried, lost.

    python tests/campaigns/faults.py STORE --model NAME FILES... [--clients 8] [--seconds 5] [--json faults.json]

The disk is filled where this account may mount a small one for a copy of STORE; where it may not, the record says that
this was not tried. Ends with status 1 where anything was lost, or answered otherwise than alone.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from campaign import finish, on_machine
from faults import START_S, bad_clients, full_disk, in_foreground, kill_worker, restart, small_disk, terminate_java
from load import Tally, load

from medad_serve.server import Ports, Server

FULL_DISK = "disk full"
ROOM_MB = 32
"""For tokens, logs and what TorchServe writes, beside the archive."""


def drills(
    server: Server, model: str, body: bytes, seconds: float, *, may_fill: bool
) -> dict[str, Callable[[], object]]:
    """Name what is done to the server while it is asked; each leaves it serving. Its disk is filled if it may be."""

    def slow_clients() -> None:
        with bad_clients(server, model, body, count=100):
            time.sleep(seconds)

    def no_room() -> None:
        with full_disk(server.store):
            time.sleep(seconds)

    def second_server() -> None:
        second = Server(server.store, Ports.free())
        second.start([model], timeout=START_S)
        second.stop()

    made = {
        "nothing": lambda: time.sleep(seconds),
        "worker killed with -9": lambda: kill_worker(server),
        "100 slow and 100 dropping clients": slow_clients,
        "a second server starts and stops": second_server,
        "stopped and started": lambda: restart(server, [model]),
        "SIGTERM to TorchServe, then started": lambda: terminate_java(server, [model]),
        "SIGTERM to medad-serve, then started": lambda: by_supervisor(server, model),
    }
    return {**made, FULL_DISK: no_room} if may_fill else made


def by_supervisor(server: Server, model: str) -> None:
    """End the server, run it in the foreground, terminate that, and start it again."""
    server.stop()
    with in_foreground(server, [model]) as process:
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    server.start([model], timeout=START_S)


@contextmanager
def on_small_disk(store: Path, model: str) -> Iterator[Path]:
    """Copy a store with one model to a file system of its own; yields ``store`` itself where none may be mounted."""
    room = (store / f"{model}.mar").stat().st_size // 2**20 + ROOM_MB
    with tempfile.TemporaryDirectory(prefix="medad-faults-") as folder, small_disk(Path(folder) / "disk", room) as disk:
        if disk is None:
            yield store
            return
        (disk / "store").mkdir()
        for file in store.iterdir():
            if file.is_file() and (file.stem == model or file.suffix != ".mar"):
                shutil.copyfile(file, disk / "store" / file.name)
        yield disk / "store"


def main() -> int:
    """Run every drill; return 1 where anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--json", type=Path, default=Path("faults.json"))
    how = parser.parse_args()
    machine = on_machine()
    with on_small_disk(how.store, how.model) as store:
        table = run(Server(store, Ports.free()), how, may_fill=store != how.store)
    told = {name: tally._asdict() for name, tally in table.items()}
    untried = [] if FULL_DISK in told else [FULL_DISK]
    finish(how.json, machine, {"clients": how.clients, "seconds": how.seconds, "faults": told, "not_tried": untried})
    return int(any(tally.lost or tally.wrong for tally in table.values()))


def run(server: Server, how: argparse.Namespace, *, may_fill: bool) -> dict[str, Tally]:
    """Do one fault after another to a server that is asked all the while."""
    table: dict[str, Tally] = {}
    server.start([how.model], timeout=START_S)
    print(f"{'fault':40}{'sent':>7}{'answered':>10}{'retried':>9}{'wrong':>7}{'lost':>6}{'slowest s':>11}")
    made = drills(server, how.model, how.files[0].read_bytes(), how.seconds, may_fill=may_fill)
    try:
        for name, fault in made.items():
            tally = load(server, how.model, how.files, fault, clients=how.clients, seconds=how.seconds)
            table[name] = tally
            print(
                f"{name:40}{tally.sent:7}{tally.answered:10}{tally.retried:9}{tally.wrong:7}{tally.lost:6}"
                f"{tally.slowest_s:11.1f}",
                *tally.faults,
                flush=True,
            )
    finally:
        if server.process():
            server.stop(drain=0)
    return table


if __name__ == "__main__":
    sys.exit(main())
