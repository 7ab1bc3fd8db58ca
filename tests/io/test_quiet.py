from __future__ import annotations

import logging
import threading
import warnings

from medad_serve.io.quiet import quiet


def test_overlapping_threads_restore_the_first_state() -> None:
    before = list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        entered.wait(5)
    assert logging.getLogger("pydicom").disabled
    leave.set()
    thread.join()
    assert warnings.filters == before
    assert not logging.getLogger("pydicom").disabled
