"""A small share of the campaign of ``tests/campaigns/mutants.py``, on a real server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from medad_serve.export.archive import archive
from medad_serve.server import Ports, Server

CAMPAIGN = Path(__file__).parents[1] / "campaigns" / "mutants.py"
MUTANTS, FILES = 210, 70


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", CAMPAIGN)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["mutants"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    archive(artifact, store, name="probe", batch_size=8, max_batch_delay_ms=200)
    made = Server(store, Ports.free())
    made.start()
    yield made
    made.stop(drain=0)


def _decoder(worker: int) -> psutil.Process:
    [child] = psutil.Process(worker).children()
    return child


@pytest.mark.slow
@pytest.mark.server
def test_damaged_files_cost_neither_a_neighbour_nor_the_worker(
    mutants: ModuleType, server: Server, dicom_files: list[Path]
) -> None:
    slices = [path.read_bytes() for path in dicom_files[:2]]
    others = mutants.forms(slices)
    compressed = next(data for kind, data in others if kind == "j2k")
    campaign = mutants.Campaign(server, "probe", [slices[0], compressed, mutants.zipped(slices)])
    files = [*mutants.corpus(), *others]
    campaign.send((kind, "none", data) for kind, data in files[:: len(files) // FILES])
    _decoder(campaign.table.worker_pids[0]).kill()
    table = campaign.send(mutants.mutants([*files, ("ct", slices[0])], MUTANTS, seed=7))
    assert table.is_clean, table.to_json()
    assert table.decoders_lost == {"died": 1}
    assert table.sent >= MUTANTS + FILES
    assert table.codes["good neighbour"] == {200: sum(table.codes["good neighbour"].values())}
    assert table.batches.get(8, 0) > 20
    said = table.to_json()["codes"]
    assert {code for row in said.values() for code in row} <= {200, 400, 413, 415, 422}


def test_mutants_are_the_same_for_the_same_seed(mutants: ModuleType) -> None:
    sources = list(islice(mutants.corpus(), 12))
    first, again, other = (list(mutants.mutants(sources, 60, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert {mutation for _, mutation, _ in first} == {m.__name__ for m in mutants.MUTATIONS}
