from __future__ import annotations

import pytest

from medad_serve.runtime.onnx import session_options
from medad_serve.spec import Session

SPINNING, STOP = "session.intra_op.allow_spinning", "session.force_spinning_stop"


def test_threads_never_spin_beyond_a_call() -> None:
    """Between requests they would burn the cores that decoding needs."""
    usual, spinning = (session_options(Session(spinning=value), 2) for value in (False, True))
    assert usual.get_session_config_entry(SPINNING) == "0"
    assert spinning.get_session_config_entry(STOP) == "1"
    with pytest.raises(RuntimeError):
        spinning.get_session_config_entry(SPINNING)  # as onnxruntime does by itself: it spins
