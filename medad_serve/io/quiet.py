"""Keeps pydicom silent: its warnings and log lines quote tag values, which may be patient data."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pydicom.pixels  # noqa: F401  creates the loggers that are switched off below

_LOGGERS = [
    logging.getLogger(name)
    for name in logging.Logger.manager.loggerDict
    if name == "pydicom" or name.startswith("pydicom.")
]
_lock = threading.Lock()
_inside = 0
_filters: warnings.catch_warnings[None] | None = None
_restore: list[tuple[logging.Logger, bool]] = []


@contextmanager
def quiet() -> Iterator[None]:
    """Drop pydicom's warnings and log lines within the block, and numpy's on old .npy headers.

    ``warnings.catch_warnings`` and loggers are state of the whole process, so overlapping blocks (threads)
    are counted: the first one in switches off, the last one out restores.
    """
    global _inside, _filters
    with _lock:
        _inside += 1
        if _inside == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            # stacklevel lets a pydicom warning count as its caller's
            warnings.filterwarnings("ignore", module=r"pydicom|medad_serve\.io|numpy\.lib")
            _restore[:] = [(logger, logger.disabled) for logger in _LOGGERS]
            for logger in _LOGGERS:
                logger.disabled = True
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _filters is not None:
                _filters.__exit__(None, None, None)
                for logger, disabled in _restore:
                    logger.disabled = disabled
