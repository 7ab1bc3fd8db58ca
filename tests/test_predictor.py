from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from medad_serve.errors import InputError, MedadError
from medad_serve.io import Limits, decode
from medad_serve.predictor import Options, Predictor, Result
from medad_serve.prep import prepare


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Predictor:
    return Predictor.load(artifact, threads=1)


def _bytes(ds) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def good(make_ct, make_slice) -> list[bytes]:
    return [_bytes(make_ct(make_slice(900 + i, bleeding=i % 2 == 1))) for i in range(4)]


def _plain(answer: Result | InputError) -> dict:
    data = answer.to_json()
    data.pop("timing_ms", None)
    return data


def test_answer_is_the_decision_by_hand(predictor: Predictor, good: list[bytes]) -> None:
    answer = predictor.predict([good[0]])[0]
    tensor = prepare(decode(good[0]), predictor.manifest.prep).tensor
    score = float(predictor.runtime.run(tensor, ["score"])["score"][0])
    level = predictor.calibration.item
    cutoff = next(c.value for c in level.cutoffs if c.policy == predictor.manifest.default_policy)
    assert answer.score == score
    assert answer.cutoff == cutoff
    assert answer.anomalous == (score >= cutoff)
    assert answer.p_value == (1 + sum(s >= score for s in level.normal_scores)) / (level.n + 1)
    assert (answer.level, answer.slices) == ("slice", None)
    assert answer.input.model_dump(exclude_none=True) == {
        "kind": "dicom",
        "modality": "CT",
        "rows": 128,
        "columns": 128,
        "frames": 1,
        "window": {"center": 40.0, "width": 80.0, "function": "LINEAR"},
    }


def test_bad_items_leave_their_neighbours_as_they_are_alone(predictor: Predictor, good: list[bytes]) -> None:
    alone = [_plain(predictor.predict([item])[0]) for item in good]
    bad = [b"", b"hello", good[0][:400], good[0][: len(good[0]) // 2], b"\x89PNG\r\n\x1a\n"]
    mixed = [good[0], bad[0], bad[1], good[1], bad[2], bad[3], good[2], bad[4], good[3]]
    answers = predictor.predict(mixed)
    assert [_plain(a) for a in answers if isinstance(a, Result)] == alone
    errors = [a for a in answers if isinstance(a, InputError)]
    assert len(errors) == 5
    for error in errors:
        body = error.to_json()["error"]
        assert 400 <= body["code"] < 500
        assert body["message"]
        assert body["hint"]


def test_a_fault_of_ours_costs_no_neighbour(predictor: Predictor, good, monkeypatch) -> None:
    import medad_serve.io.guarded as module

    real = module.decode
    monkeypatch.setattr(module, "decode", lambda source, limits: 1 / 0 if source == good[1] else real(source, limits))
    answers = predictor.predict(good[:3])
    assert [isinstance(a, Result) for a in answers] == [True, False, True]
    assert answers[1].code == 500


def test_a_multi_frame_file_gets_a_patient_decision(predictor: Predictor, make_ct, make_slice) -> None:
    frames = np.stack([make_slice(1), make_slice(2), make_slice(3, bleeding=True)])
    ds = make_ct(frames[0])
    ds.NumberOfFrames, ds.PixelData = 3, frames.tobytes()
    answer = predictor.predict([_bytes(ds)])[0]
    alone = [predictor.predict([_bytes(make_ct(f))])[0] for f in frames]
    assert answer.level == "patient"
    assert {s.source for s in answer.slices} == {None}
    assert [s.score for s in answer.slices] == [a.score for a in alone]
    assert [s.anomalous for s in answer.slices] == [a.anomalous for a in alone]
    assert answer.score == max(a.score for a in alone)
    level = predictor.calibration.patient
    assert answer.cutoff == next(c.value for c in level.cutoffs if c.policy == answer.policy)
    assert any("calibrated on patients with 2 to 2" in w for w in answer.warnings)


def test_a_slice_tells_which_of_the_files_sent_it_came_in(predictor: Predictor, make_ct, make_slice) -> None:
    slices = [_bytes(make_ct(make_slice(n), instance=n)) for n in range(1, 6)]
    order = [3, 0, 4, 1, 2]
    alone = {n: predictor.predict([slices[n]])[0].score for n in range(5)}
    answer = predictor.predict([(*(slices[n] for n in order), b"no image")])[0]
    assert [part.score for part in answer.slices] == [alone[n] for n in range(5)]
    assert [order[part.source] for part in answer.slices] == [0, 1, 2, 3, 4]
    assert answer.to_json()["left_out"] == [{"source": 5, "reason": "it is no DICOM file"}]
    assert "left_out" not in predictor.predict([tuple(slices)])[0].to_json()


def test_patients_sent_together_are_never_decided_as_one(predictor: Predictor, make_ct, make_slice) -> None:
    bleeding = _bytes(make_ct(make_slice(3, bleeding=True), "P2", instance=3))
    ours = [_bytes(make_ct(make_slice(n), "P1", instance=n)) for n in (1, 2)]
    mixed, alone = predictor.predict([(ours[0], bleeding, ours[1]), tuple(ours)])
    assert (mixed.score, mixed.anomalous) == (alone.score, alone.anomalous)
    assert "1 file of another series left out" in mixed.warnings
    assert mixed.to_json()["left_out"] == [{"source": 1, "reason": "of another series"}]


def test_policy_is_chosen_among_the_calibrated(predictor: Predictor, good: list[bytes]) -> None:
    youden, unknown, default = predictor.predict(
        [good[0]] * 3, [Options(policy="youden"), Options(policy="specificity=0.5"), Options()]
    )
    assert youden.policy == "youden"
    assert default.policy == "specificity=0.8"
    assert unknown.code == 422
    assert "youden" in unknown.hint


def test_heatmap_npy_is_the_map_on_the_source_grid(predictor: Predictor, good: list[bytes]) -> None:
    answer = predictor.predict([good[1]], [Options(heatmap="npy")])[0]
    found = np.load(io.BytesIO(base64.b64decode(answer.heatmap.data)))
    prepared = prepare(decode(good[1]), predictor.manifest.prep)
    heat = predictor.runtime.run(prepared.tensor, ["heatmap"])["heatmap"][0, 0]
    assert np.array_equal(found, cv2.resize(heat, (128, 128), interpolation=cv2.INTER_LINEAR))


def test_heatmap_png_has_the_size_of_the_source(predictor: Predictor, good: list[bytes]) -> None:
    plain, shown = predictor.predict([good[1]] * 2, [Options(), Options(heatmap="png")])
    assert plain.heatmap is None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(shown.heatmap.data), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (128, 128, 3)
    assert plain.score == shown.score


def test_a_prepared_tensor_is_answered_as_its_file(predictor: Predictor, good: list[bytes]) -> None:
    tensors = [prepare(decode(item), predictor.manifest.prep).tensor for item in good[:3]]
    by_file, by_tensor, series = predictor.predict([good[0], tensors[0], np.concatenate(tensors)])
    assert by_tensor.score == by_file.score
    assert (by_tensor.level, by_tensor.input.kind) == ("slice", "tensor")
    assert series.level == "patient"
    assert [s.score for s in series.slices] == [a.score for a in predictor.predict(good[:3])]


@pytest.mark.parametrize("shape", [(1, 1, 32, 64), (64, 64), (0, 1, 64, 64), (1, 3, 64, 64), (2, 1, 1, 64, 64)])
def test_a_tensor_of_another_shape_is_refused(predictor: Predictor, good: list[bytes], shape: tuple[int, ...]) -> None:
    neighbour, refused = predictor.predict([good[0], np.zeros(shape, np.float32)])
    assert isinstance(neighbour, Result)
    assert (refused.code, "Nx1x64x64" in refused.message) == (422, True)


def test_a_tensor_with_nan_is_refused(predictor: Predictor) -> None:
    [refused] = predictor.predict([np.full((1, 1, 64, 64), np.nan, np.float32)])
    assert refused.code == 422


def test_more_items_than_fit_prepared_into_memory_are_refused(artifact: Path, make_ct, make_slice) -> None:
    limited = Predictor.load(artifact, threads=1, limits=Limits(max_values=3 * 64 * 64))
    ds = make_ct(make_slice(1, size=32))  # small frames, prepared to larger ones
    ds.NumberOfFrames, ds.PixelData = 4, ds.PixelData * 4
    fits, refused = limited.predict([np.zeros((3, 1, 64, 64), np.float32), _bytes(ds)])
    assert isinstance(fits, Result)
    assert (refused.code, "more than 3 slices" in refused.message) == (413, True)


def test_large_items_of_a_batch_are_not_held_together(predictor: Predictor, good: list[bytes], monkeypatch) -> None:
    together = [_plain(answer) for answer in predictor.predict(good)]
    held: list[int] = []
    real = Predictor._answer_all

    def counting(self, batch, items):
        held.append(len(items))
        return real(self, batch, items)

    monkeypatch.setattr(Predictor, "_answer_all", counting)
    monkeypatch.setattr("medad_serve.predictor.HELD_BYTES", 64 * 64 * 4)  # one prepared slice
    assert [_plain(answer) for answer in predictor.predict(good)] == together
    assert held == [2, 2]


def test_a_file_is_let_go_once_it_is_decoded(artifact: Path) -> None:
    size, held = 2**22, []

    def refusing(sources, deadline):
        for _ in sources:
            held.append(tracemalloc.get_traced_memory()[0] - before)
            yield InputError(400, "no image")

    predictor = Predictor.load(artifact, decoder=refusing)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        predictor.predict(bytes([i]) * size for i in range(8))
    finally:
        tracemalloc.stop()
    assert held[0] > 8 * size  # all are there before the first is decoded
    assert held[-1] < 2 * size


def test_heatmaps_are_kept_for_those_who_ask_alone(predictor: Predictor, good: list[bytes], monkeypatch) -> None:
    asked: list[tuple[int, bool]] = []
    real = predictor.runtime.run

    def watching(batch, names):
        asked.append((len(batch), "heatmap" in names))
        return real(batch, names)

    monkeypatch.setattr(predictor.runtime, "run", watching)
    monkeypatch.setattr(predictor.scorer, "_may_mix", True)
    predictor.predict(good, [Options(), Options(heatmap="npy"), Options(), Options()])
    assert sorted(asked) == [(1, False), (1, True), (2, False)]


def test_torchscript_answers_as_onnx_does(predictor: Predictor, artifact: Path, good: list[bytes]) -> None:
    other = Predictor.load(artifact, runtime="torchscript")
    for a, b in zip(predictor.predict(good), other.predict(good), strict=True):
        assert b.score == pytest.approx(a.score, rel=1e-5)
        assert a.anomalous == b.anomalous


def test_a_blank_image_is_answered_with_a_warning(predictor: Predictor, make_ct) -> None:
    answer = predictor.predict([_bytes(make_ct(np.full((64, 64), -1000, np.int16)))])[0]
    assert any("blank" in w for w in answer.warnings)


def test_a_png_is_refused_by_a_ct_model(predictor: Predictor) -> None:
    png = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    answer = predictor.predict([png])[0]
    assert answer.code == 422
    assert "CT" in answer.message


def test_what_cannot_be_opened_is_named(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="was not exported for tensorrt"):
        Predictor.load(artifact, runtime="tensorrt")
    with pytest.raises(MedadError, match="is no artifact"):
        Predictor.load(tmp_path)


def test_prediction_with_onnx_loads_no_torch(artifact: Path, good: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(good[0])
    code = (
        "import sys, pathlib; import medad_serve.predictor as p; assert 'torch' not in sys.modules\n"
        "a = p.Predictor.load(pathlib.Path(sys.argv[1])).predict([pathlib.Path(sys.argv[2])])[0]\n"
        "assert not {'torch', 'lightning', 'sklearn', 'matplotlib', 'torchmetrics'} & set(sys.modules), 'loaded'\n"
        "import json; print(json.dumps(a.to_json()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifact), str(tmp_path / "a.dcm")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["policy"] == "specificity=0.8"
