"""How many workers, how large batches and how long a wait for them: what the defaults of ``archive`` rest on.

    python tests/campaigns/sweep.py FOLDER --model ae --model efficientnet_b0 --seconds 5

Serves one model under several settings at once, and loads one after another, round after round, so that whatever
else the machine does disturbs all alike. FOLDER holds DICOM files. Prints answers a second, latencies and processor
milliseconds an answer, as medians over the rounds, and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from campaign import finish, on_machine
from untrained import export_untrained

from medad_serve.export.archive import archive
from medad_serve.io import Pixels
from medad_serve.io.guarded import decoded
from medad_serve.loadbench import Footprint, Sent, Target, put_load
from medad_serve.models import family
from medad_serve.server import Ports, Server

SETTINGS = ((1, 1, 0), (1, 8, 1), (1, 8, 5), (1, 8, 20), (1, 8, 50), (1, 16, 20), (2, 8, 1))
"""Workers, batch size, milliseconds of delay."""
CLIENTS = (1, 4, 16)
WARM_S = 1.5


def sweep(model: str, bodies: list[Sent], seconds: float, rounds: int) -> list[dict[str, float]]:
    """Return a row of figures for each setting and number of clients."""
    with tempfile.TemporaryDirectory(prefix="medad-sweep-") as folder:
        artifact, store = Path(folder) / "artifact", Path(folder) / "store"
        artifact.mkdir()
        export_untrained(family(model), artifact, ["onnx"])
        names = {f"w{w}b{b}d{d}": (w, b, d) for w, b, d in SETTINGS}
        for name, (workers, batch_size, delay) in names.items():
            archive(artifact, store, name=name, workers=workers, batch_size=batch_size, max_batch_delay_ms=delay)
        server = Server(store, Ports.free())
        server.start()
        try:
            key = json.loads(server.key_file.read_text())["inference"]["key"]
            found: dict[tuple[str, int], list[dict[str, float]]] = {}
            for number in range(-1, rounds):
                for name in names:
                    target = Target(server.url("inference"), name, key)
                    for clients in CLIENTS:
                        figures = _measure(server, target, bodies, clients, WARM_S if number < 0 else seconds)
                        if number >= 0:
                            found.setdefault((name, clients), []).append(figures)
        finally:
            server.stop(drain=0)
    rows = []
    for (name, clients), parts in found.items():
        workers, batch_size, delay = names[name]
        middle = {figure: statistics.median(part[figure] for part in parts) for figure in parts[0]}
        rows.append({"workers": workers, "batch_size": batch_size, "delay_ms": delay, "clients": clients, **middle})
    return rows


def _measure(server: Server, target: Target, bodies: list[Sent], clients: int, seconds: float) -> dict[str, float]:
    process = server.process()
    assert process is not None
    before = Footprint.of(process).cpu_s
    load = put_load(target, bodies, clients, seconds)
    assert not load.errors, load.errors
    cpu_ms = (Footprint.of(process).cpu_s - before) * 1e3 / load.requests
    return {"per_second": load.throughput, "p50_ms": load.p50, "p95_ms": load.p95, "cpu_ms": cpu_ms}


def main() -> None:
    """Sweep each model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("sweep.json"))
    asked = parser.parse_args()
    files = (path.read_bytes() for path in sorted(asked.folder.rglob("*.dcm")))
    bodies = [Sent(data) for data in islice(files, 64) if isinstance(decoded(data), Pixels)]
    machine, told = on_machine(), {}
    for model in asked.model:
        start = time.monotonic()
        told[model] = sweep(model, bodies, asked.seconds, asked.rounds)
        print(f"{model}, {len(bodies)} files, {time.monotonic() - start:.0f} s")
        print("  ".join(f"{name:>10}" for name in told[model][0]))
        for row in told[model]:
            print("  ".join(f"{value:10.4g}" for value in row.values()), flush=True)
    finish(asked.json, machine, {"seconds": asked.seconds, "rounds": asked.rounds, "models": told})


if __name__ == "__main__":
    main()
