"""Every registered engine runs a small artifact and answers as PyTorch does, or says what it lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from medad_serve.artifact import GRAPHS, graph_of, load_manifest
from medad_serve.bench.agreement import compare, default_cutoff
from medad_serve.bench.engines import Engine, Setup, Subject, engine, engines
from medad_serve.bench.engines.base import EAGER, RUN_NEEDED
from medad_serve.bench.engines.bound import BoundSession
from medad_serve.bench.engines.onnx_cuda import cuda_provider
from medad_serve.bench.engines.served import ServedSession
from medad_serve.bench.engines.tensorrt import tensorrt_provider
from medad_serve.bench.fresh import start_fresh
from medad_serve.bench.inputs import Inputs, inputs_for
from medad_serve.errors import MedadError
from medad_serve.evaluation import export_run
from medad_serve.runtime import OnnxRuntime, Outputs, lacking
from medad_serve.spec import Manifest
from medad_serve.training.run import open_run

COMPILING = ("torch.compile", "AOTInductor")
"""These have a compiler work for half a minute."""
ROUNDING = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05, "int8": 0.2, "int8-bfloat16": 0.2}
"""Of float32 as parity allows it; of others what their formats resolve, ten times over."""
EVERY = [pytest.param(name, marks=pytest.mark.slow if name in COMPILING else ()) for name in engines()]


@pytest.fixture(scope="module")
def artifact(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run once more, exported for every runtime that is installed, in float32 and int8."""
    run = tmp_path_factory.mktemp("bench") / "run"
    shutil.copytree(run_path, run, ignore=shutil.ignore_patterns("artifact"))
    wanted = [name for name in GRAPHS if name.endswith(("/float32", "/int8")) and not lacking(name)]
    return export_run(open_run(run), wanted)


@pytest.fixture(scope="module")
def manifest(artifact: Path) -> Manifest:
    """Of that artifact."""
    return load_manifest(artifact)


@pytest.fixture
def subject(artifact: Path, manifest: Manifest, tmp_path: Path) -> Subject:
    """What engines are told of it."""
    return Subject.of(artifact, artifact.parent, tmp_path, manifest)


@pytest.fixture(scope="module")
def inputs(artifact: Path, manifest: Manifest) -> Inputs:
    """Held-out items."""
    return inputs_for(manifest, artifact.parent)


@pytest.fixture
def expected(subject: Subject, inputs: Inputs) -> Outputs:
    """What the trained model answers."""
    return engine(EAGER).open(subject, Setup()).run(inputs.batch(3), subject.names)


def _runnable(each: Engine, subject: Subject) -> list[Setup]:
    """Setups in which an engine runs here; of the others, that it says what it lacks in a line."""
    setups = []
    for precision in each.precisions(each.devices[0]):
        setup = Setup(precision=precision, threads=1, device=each.devices[0], batches=(1, 3))
        reason = each.missing(subject, setup)
        if reason is None:
            setups.append(setup)
        else:
            assert reason
            assert "\n" not in reason
    return setups


@pytest.mark.parametrize("name", EVERY)
def test_an_engine_answers_as_the_trained_model_or_says_what_it_lacks(
    name: str, subject: Subject, inputs: Inputs, expected: Outputs, manifest: Manifest
) -> None:
    each = engine(name)
    setups = _runnable(each, subject)
    if not setups:
        pytest.skip(str(each.missing(subject, Setup(device=each.devices[0]))))
    for setup in setups:
        each.build(subject, setup)
        session = each.open(subject, setup)
        found = session.run(inputs.batch(3), subject.names)
        cutoffs = default_cutoff(manifest), default_cutoff(manifest, f"{each.key}/{setup.precision}")
        compared = compare(found, expected, subject.outputs, *cutoffs)
        assert compared.relative_difference <= ROUNDING[setup.precision], setup.precision
        alone = session.run(inputs.batch(1), ["score"])
        assert set(alone) == {"score"}
        assert alone["score"] == pytest.approx(found["score"][:1], rel=ROUNDING[setup.precision])
        assert sum(file.stat().st_size for file in each.files(subject, setup)) > 1000


def test_what_is_here_runs(subject: Subject) -> None:
    for name in (EAGER, "onnxruntime", "TorchScript", "TorchScript optimized"):
        assert _runnable(engine(name), subject), name
    assert [setup.precision for setup in _runnable(engine("onnxruntime"), subject)] == ["float32", "int8"]


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        ("onnxruntime", "session.intra_op.allow_spinning", "0"),
        ("onnxruntime spinning", "session.force_spinning_stop", "1"),
    ],
)
def test_threads_that_spin_are_measured_beside_those_that_sleep(
    subject: Subject, name: str, entry: str, value: str
) -> None:
    opened = engine(name).open(subject, Setup(threads=2))
    assert isinstance(opened, ServedSession)
    assert isinstance(opened.runtime, OnnxRuntime)
    assert opened.runtime.session.get_session_options().get_session_config_entry(entry) == value


def test_an_artifact_that_stands_alone_says_that_weights_need_the_run(subject: Subject) -> None:
    alone = subject.model_copy(update={"run": None})
    for name in (EAGER, *COMPILING):
        assert engine(name).missing(alone, Setup()) == RUN_NEEDED
    assert engine("onnxruntime").missing(alone, Setup()) is None


def test_an_unknown_engine_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(MedadError, match="onnxruntime CUDA"):
        engine("abacus")


def test_bound_inputs_and_outputs_answer_as_a_plain_session(artifact: Path, subject: Subject, inputs: Inputs) -> None:
    session = ort.InferenceSession(artifact / graph_of("onnx"), providers=["CPUExecutionProvider"])
    bound = BoundSession(session, subject, "cpu")
    for size in (3, 1, 3):  # the places of a size are used again
        batch = inputs.tensor[size - 1 : 2 * size - 1]
        found = bound.run(batch, subject.names)
        bound.run(inputs.batch(size), ["score"])  # changes neither answers that were given nor what was asked about
        for name, value in zip(subject.names, session.run(list(subject.names), {bound.name: batch}), strict=True):
            np.testing.assert_array_equal(found[name], value)
    call = bound.resident(inputs.batch(3))
    assert call is not None
    call()
    again = bound.placed[3].outputs["score"].numpy()
    np.testing.assert_array_equal(again, session.run(["score"], {bound.name: inputs.batch(3)})[0])


def test_the_cuda_provider_is_told_all_that_fixed_shapes_allow() -> None:
    name, options = cuda_provider("cuda:1", graphs=True)
    assert name == "CUDAExecutionProvider"
    assert options["device_id"] == 1
    assert (options["enable_cuda_graph"], options["prefer_nhwc"], options["use_tf32"]) == (1, 1, 0)
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert cuda_provider("cuda", graphs=False)[1]["enable_cuda_graph"] == 0


def test_tensorrt_is_told_the_batch_sizes_that_will_come(subject: Subject) -> None:
    setup = Setup(precision="float16", device="cuda", batches=(1, 8))
    _, options = tensorrt_provider(subject, setup, "image")
    assert options["trt_fp16_enable"] is True
    assert options["trt_profile_min_shapes"] == "image:1x1x64x64"
    assert options["trt_profile_max_shapes"] == "image:8x1x64x64"


def test_a_fresh_process_tells_its_start_and_its_peak(subject: Subject) -> None:
    setup = Setup(batches=(1, 8)).model_dump_json()
    light = start_fresh("onnxruntime", subject.model_dump_json(), setup)
    heavy = start_fresh("TorchScript", subject.model_dump_json(), setup)
    assert 0 < light.first_s < light.total_s < heavy.total_s  # torch takes seconds to import, and memory
    assert 30 < light.peak_mib < heavy.peak_mib - 100


def test_a_fresh_process_that_fails_says_why_in_a_line(subject: Subject) -> None:
    nowhere = subject.model_copy(update={"artifact": subject.scratch})
    with pytest.raises(MedadError, match=r"onnxruntime ended with 1 .*model\.onnx is missing"):
        start_fresh("onnxruntime", nowhere.model_dump_json(), Setup().model_dump_json())
