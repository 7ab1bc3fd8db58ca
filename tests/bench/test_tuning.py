from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from medad_serve.artifact import load_manifest
from medad_serve.bench import tuning
from medad_serve.bench.tuning import tune
from medad_serve.cli.main import cli
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.export.store import inspect
from medad_serve.predictor import Predictor
from medad_serve.spec import Session

Cost = Callable[[str, int, Session], float]


@pytest.fixture
def own(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


@pytest.fixture
def costing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cost], None]:
    """``costing(cost)``: runtimes that do nothing for ``cost(variant, items, session)`` seconds, on two cores."""

    def use(cost: Cost) -> None:
        class Idle:
            def __init__(self, variant: str, session: Session) -> None:
                self.variant, self.session = variant, session

            def run(self, batch: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
                time.sleep(cost(self.variant, len(batch), self.session))
                return {}

        monkeypatch.setattr(tuning, "open_runtime", lambda _, variant, __, *, threads, session: Idle(variant, session))
        monkeypatch.setattr(tuning, "cores", lambda: 2)

    return use


def test_the_fastest_variant_is_kept_with_the_figures_of_all(own: Path, costing: Callable[[Cost], None]) -> None:
    # long beside what a call costs by itself, which a larger batch would spare
    costing(lambda variant, items, _: items * (0.01 if variant.startswith("torch") else 0.05))
    found = tune(own, seconds=0.1)
    assert load_manifest(own).tuning == found
    assert found.variant == "torchscript/float32"
    assert found.session == Session(batch=1), "a larger batch that is no faster is not worth its delay"
    assert found.workers == 1
    rates = {name: rate for name, rate in found.trials.items() if name.endswith("batch=1")}
    assert 0 < rates["onnx/float32, batch=1"] < 1 / 0.05
    assert rates["onnx/float32, batch=1"] < rates["torchscript/float32, batch=1"] < 1 / 0.01


def test_a_batch_that_shares_a_cost_is_chosen(own: Path, costing: Callable[[Cost], None]) -> None:
    costing(lambda _, items, __: 0.01 + items * 0.0001)
    assert tune(own, variants=["onnx"], seconds=0.1).session.batch == 16


def test_a_thread_and_a_worker_for_each_core_where_threads_help_nothing(
    own: Path, costing: Callable[[Cost], None]
) -> None:
    costing(lambda _, items, session: items * (0.004 if session.threads == 1 else 0.04))
    found = tune(own, variants=["onnx"], seconds=0.1)
    assert (found.session.threads, found.workers) == (1, 2)


@pytest.mark.parametrize(("name", "value"), [("optimization", "extended"), ("arena", False), ("spinning", True)])
def test_what_onnxruntime_does_faster_otherwise_is_chosen(
    own: Path, costing: Callable[[Cost], None], name: str, value: object
) -> None:
    costing(lambda _, items, session: items * (0.004 if getattr(session, name) == value else 0.04))
    assert getattr(tune(own, variants=["onnx"], seconds=0.1).session, name) == value


def test_what_was_found_is_taken_by_predictor_and_archive(
    own: Path, costing: Callable[[Cost], None], tmp_path: Path, dicom_files: list[Path]
) -> None:
    before = Predictor.load(own).predict([dicom_files[0]])[0]
    costing(lambda variant, items, _: items * (0.002 if variant.startswith("torch") else 0.02))
    tune(own, seconds=0.05)
    predictor = Predictor.load(own)
    assert predictor.variant == "torchscript/float32"
    assert predictor.predict([dicom_files[0]])[0].score == pytest.approx(before.score, rel=1e-4)
    served = inspect(archive(own, tmp_path / "store", name="tuned")).archive
    assert served.config.handler.runtime == "torchscript/float32"
    assert set(served.manifest.files) == {"model.ts", "medad_handler.py", "model-config.yaml"}
    named = inspect(archive(own, tmp_path / "store", name="named", runtime="onnx", workers=2)).archive
    assert (named.config.handler.runtime, named.config.minWorkers) == ("onnx/float32", 2)


def test_a_variant_that_was_not_exported_is_named(own: Path) -> None:
    with pytest.raises(MedadError, match="was not exported for onnx/int8"):
        tune(own, variants=["onnx/int8"])


def test_the_command_measures_this_machine(own: Path) -> None:
    done = CliRunner().invoke(cli, ["tune", str(own), "--exact", "--seconds", "0.05"])
    assert done.exit_code == 0, done.output
    found = load_manifest(own).tuning
    assert found is not None
    assert found.variant in done.output
    assert found.items_per_second > 0
