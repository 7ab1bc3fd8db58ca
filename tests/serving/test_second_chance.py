"""Files that are slow and good: what their neighbours took of their time they get back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medad_serve.deadline import Deadline, Postponed
from medad_serve.io import Pixels
from medad_serve.io.guarded import decoded
from medad_serve.predictor import Predictor, Result
from medad_serve.serving.isolation import IsolatedDecoder

SUPPORT = Path(__file__).parents[1] / "support"
BUDGET_S = 2.0


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        decoder = IsolatedDecoder(budget_s=BUDGET_S, module="faulty_codec")
        yield Predictor.load(artifact, threads=1, decoder=decoder)
        decoder.close()


@pytest.fixture(scope="module")
def slow(dicom_files: list[Path]) -> list[bytes]:
    """Each takes half of the time that all may take."""
    return [b"slow1.00" + path.read_bytes() for path in dicom_files[:3]]


def test_slow_files_of_one_batch_are_all_answered(
    predictor: Predictor, slow: list[bytes], dicom_files: list[Path]
) -> None:
    answers = predictor.predict([*slow, dicom_files[0].read_bytes()], deadline=Deadline.after(60))
    assert [type(answer) for answer in answers] == [Result] * 4
    expected = predictor.predict([path.read_bytes() for path in dicom_files[:3]])
    assert [answer.score for answer in answers[:3]] == [answer.score for answer in expected]


def test_those_for_which_no_time_is_left_are_answered_when_sent_again(predictor: Predictor, slow: list[bytes]) -> None:
    answers = predictor.predict(slow, deadline=Deadline.after(BUDGET_S + 1))
    postponed = [source for source, answer in zip(slow, answers, strict=True) if isinstance(answer, Postponed)]
    assert postponed
    assert {answer.code for answer in answers if isinstance(answer, Postponed)} == {503}
    [again] = predictor.predict([postponed[0]], deadline=Deadline.after(BUDGET_S + 30))
    assert isinstance(again, Result)


def test_a_second_chance_comes_after_the_neighbours_are_answered(
    predictor: Predictor, slow: list[bytes], dicom_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []
    real = Predictor._answer_all
    monkeypatch.setattr(
        Predictor,
        "_answer_all",
        lambda self, batch, items: order.extend(item.index for item in items) or real(self, batch, items),
    )
    once = {"left": 1}

    def decoding(sources: Any, deadline: Deadline) -> Iterator[Pixels | Postponed]:
        for source in sources:
            if source == b"late" and once.pop("left", 0):
                yield Postponed(given_s=1)
            else:
                yield decoded(dicom_files[0].read_bytes())

    monkeypatch.setattr(predictor, "decoder", decoding)
    answers = predictor.predict([b"late", b"a", b"b" * 9], deadline=Deadline.after(60))
    assert all(isinstance(answer, Result) for answer in answers)
    assert order == [1, 2, 0]
