"""The logs of a server: kept for a while after it, and read for the reason why it did not serve."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from medad_serve.errors import MedadError

CONSOLE = "console.log"
KEPT = 5
"""Of the servers before this one."""
DEATHS = 3
"""Workers that may end in an exception before the model is given up."""
QUIET_S = 0.5
"""After which a worker has said all."""


class Logs:
    """What the server of a run directory writes."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "logs"
        self.console = run_dir / CONSOLE

    def put_by(self) -> None:
        """Keep the logs of the servers before, of the last few: they tell why one ended."""
        for left in sorted(self.folder.parent.glob(f"{self.folder.name}-*"))[: 1 - KEPT]:
            shutil.rmtree(left, ignore_errors=True)
        if self.folder.is_dir():
            when = datetime.fromtimestamp(self.folder.stat().st_mtime, UTC)
            kept = self.folder.with_name(f"{self.folder.name}-{when:%Y%m%dT%H%M%S.%f}")
            self.folder.rename(kept)
            with suppress(FileNotFoundError):
                self.console.rename(kept / CONSOLE)

    def failure(self, what: str, model: str = "", *, patience: float = 0) -> MedadError:
        """Return the error that ``what`` happened, with the last reason that a worker of ``model`` gave.

        A worker's words come through other threads than what TorchServe says of it: seconds later on a busy machine,
        and line by line.
        """
        reason, until = _last_exception(self._text(), model), time.monotonic() + patience
        while time.monotonic() < until:
            time.sleep(QUIET_S)
            before, reason = reason, _last_exception(self._text(), model)
            if reason and reason == before:
                break
        return MedadError(f"{what}{f': {reason}' if reason else ''}", f"See {self.folder / 'ts_log.log'}")

    def tell_failure(self, model: str) -> bool:
        """Whether a model did not load, or its workers die before they can say so: TorchServe starts them for ever."""
        log = self._text()
        deaths = re.findall(rf"{_worker(model)}Traceback", log)
        return f"Load model failed: {model}," in log or len(deaths) >= DEATHS

    def _text(self) -> str:
        found = [path for path in (self.console, self.folder / "ts_log.log") if path.exists()]
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in found)


def _worker(model: str) -> str:
    return rf"W-\d+-{re.escape(model)}_\S*-std\w+ MODEL_LOG - "


def _last_exception(log: str, model: str) -> str:
    """Return the last exception line that a worker of ``model`` (or else the frontend) wrote."""
    if model:
        log = "\n".join(re.findall(f"{_worker(model)}(.*)", log))
        _, found, trace = log.rpartition("Traceback (most recent call last):")
        ends = [line for line in trace.splitlines()[1:] if line and not line[0].isspace()] if found else []
        return re.sub(r"^medad_serve\.errors\.\w+: ", "", ends[0]) if ends else ""
    return next((line for line in reversed(log.splitlines()) if re.search(r"Exception|Error|cannot", line)), "")
