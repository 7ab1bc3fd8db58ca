"""Every place of a request is filled with strings of its own; none is found in anything that the server wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from leaks import traces
from marked import Visit, marked_bodies, pay_visit
from pydicom.dataset import FileDataset

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore:Unknown encoding")]


@pytest.fixture(scope="module")
def visit(
    artifact: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_ct: Callable[..., FileDataset],
    make_slice: Callable[..., np.ndarray],
) -> Visit:
    bodies = marked_bodies(lambda number: make_ct(make_slice(number), instance=number), make_slice(1))
    return pay_visit(artifact, bodies, tmp_path_factory.mktemp("visit"))


def test_everything_was_asked_and_the_server_stood_it(visit: Visit) -> None:
    codes = [answer.status_code for answer in visit.answers]
    assert len(visit.sent) > 5000
    assert codes.count(200) > 10
    assert {400, 404, 405, 422} <= set(codes)
    assert '"score"' in visit.printed
    assert '"error"' in visit.printed
    logs = b"".join(path.read_bytes() for path in visit.server.logs.iterdir())
    assert b"thrown in" in logs
    assert b'"POST /predictions/tiny' in logs


def test_no_file_that_the_server_wrote_holds_any_of_it(visit: Visit) -> None:
    assert {path.name: sorted(seen)[:3] for path, seen in visit.left.items()} == {}


def test_no_answer_repeats_the_input(visit: Visit) -> None:
    """But to whoever sent it, from where no handler is asked: TorchServe names an unknown model, and quotes a form
    that is none."""
    assert visit.repeated == []


def test_the_client_prints_none_of_it(visit: Visit) -> None:
    assert traces(visit.printed.encode()) == set()
