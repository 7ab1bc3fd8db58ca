"""Start, watch and stop TorchServe over a model store.

Each server has a directory of its own, ``<store>/.server-<port>``: TorchServe writes key_file.json into its
working directory, and two servers in one would overwrite each other's. Its temporary directory is its own
too, since TorchServe keeps process id, worker sockets and unpacked models there under fixed names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil

from medad_serve.errors import MedadError
from medad_serve.export.inspection import AGAIN
from medad_serve.export.store import LOGGING, PROPERTIES, check_name, inspect, private_logging
from medad_serve.files import write_whole
from medad_serve.java import java_home
from medad_serve.server.drain import drain as wait_for_answers
from medad_serve.server.process import PID_FILE, PREFIX, STATE, end, process_of, remove_temporary, running
from medad_serve.server.settings import KINDS, Ports, check_port, port_of, run_directory, settings_of, tls_of
from medad_serve.server.tls import Tls, trusting

KEY_FILE = "key_file.json"
CONSOLE = "console.log"
LOGS_KEPT = 5
"""Of the servers before this one."""
DEATHS = 3
"""Workers that may end in an exception before the model is given up."""


class Server:
    """One TorchServe over ``store``: running, or to be started."""

    def __init__(self, store: Path, ports: Ports | None = None, tls: Tls | None = None) -> None:
        if not store.is_dir():
            raise MedadError(f"there is no model store at {store}", "Run: medad-serve archive ARTIFACT")
        self.store = store.resolve()
        self.settings = settings_of(self.store, ports or Ports(), tls)
        self.refused: dict[str, MedadError] = {}
        """Archives of the store that did not verify, and why; `start` leaves them out."""
        self.run_dir = run_directory(self.store, port_of(self.url("inference")))
        self.key_file = self.run_dir / KEY_FILE
        self.logs = self.run_dir / "logs"

    def url(self, kind: str) -> str:
        """Return the address of ``inference``, ``management`` or ``metrics``, as a client reaches it."""
        return self.settings[f"{kind}_address"].replace("//0.0.0.0", "//127.0.0.1")

    def start(self, models: Sequence[str] = (), *, timeout: float = 300, foreground: bool = False) -> list[str]:
        """Verify the archives, start TorchServe and return the names served once every worker is ready.

        ``models`` empty serves every archive of the store that verifies; ``refused`` tells of the others.
        ``foreground`` shows TorchServe's log. Raises MedadError for a model named that does not verify, none that
        does, no Java, a port in use, a certificate that cannot be used, or a model that does not load (with the
        worker's own reason); nothing is left running then.
        """
        if self.process() is not None:
            raise MedadError(f"a server already runs at {self.url('inference')}", "Run: medad-serve serve --stop")
        tls = tls_of(self.settings)
        if tls is not None:
            self.settings |= tls.settings()
        names = self._verified(list(dict.fromkeys(models)))
        java = java_home()
        for kind in KINDS:
            check_port(kind, self.settings[f"{kind}_address"])
        self._clean()
        try:
            self._launch(names, java, foreground)
            self._wait(names, timeout)
        except BaseException:
            self._end(timeout=10)
            raise
        return names

    def wait(self) -> None:
        """Return once the server has been stopped; raises MedadError where it ended by itself."""
        while self.process() is not None:
            time.sleep(0.5)
        time.sleep(1)  # one that stops it removes its state last
        if (self.run_dir / STATE).exists():
            self._clean()
            raise self._failure("TorchServe ended by itself")

    def stop(self, *, drain: float = 10, timeout: float = 60) -> None:
        """End the server and return when its processes are gone.

        TorchServe cuts off requests that are being answered, so they get up to ``drain`` seconds to end first.
        Raises MedadError if none is running.
        """
        process = self.process()
        if process is None:
            others = ", ".join(sorted(p.name.removeprefix(".server-") for p in running(self.store))) or "none"
            raise MedadError(
                f"no server runs at {self.url('inference')}", f"Ports with a server of this store: {others}"
            )
        try:
            wait_for_answers(process, port_of(self.url("inference")), drain)
        finally:  # told to stop twice, it stops
            self._end(timeout)

    def process(self) -> psutil.Process | None:
        """Return TorchServe's frontend process, None where it does not run."""
        return process_of(self.run_dir)

    def _verified(self, named: list[str]) -> list[str]:
        """Return the models to serve; one that nobody named costs the others nothing where it does not verify."""
        found = named or sorted(mar.stem for mar in self.store.glob("*.mar"))
        if not found:
            raise MedadError(f"{self.store} holds no archive", "Run: medad-serve archive ARTIFACT")
        self.refused = {}
        for name in found:
            try:
                self._check_model(name)
            except MedadError as error:
                if named or len(found) == 1:
                    raise
                self.refused[name] = error
        if len(self.refused) == len(found):
            raise MedadError("; ".join(error.message for error in self.refused.values()), AGAIN)
        return [name for name in found if name not in self.refused]

    def _check_model(self, name: str) -> None:
        check_name(name)
        config = inspect(self.store / f"{name}.mar").archive.config
        if config.handler.max_answer_bytes > int(self.settings.get("max_response_size", 6_553_500)):
            raise MedadError(
                f"max_response_size in {self.store / PROPERTIES} is below what {name} was archived with",
                "Raise it, or archive the model again",
            )

    def _launch(self, names: list[str], java: Path, foreground: bool) -> None:
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=PREFIX))
        write_whole(self.run_dir / STATE, json.dumps({"temporary": str(temporary), "models": names}) + "\n")
        lines = [f"{key}={value}" for key, value in self.settings.items()]
        write_whole(self.run_dir / PROPERTIES, "\n".join(lines) + "\n")
        self._put_logs_by()
        command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs"]
        command += ["--model-store", str(self.store), "--ts-config", PROPERTIES]
        command += ["--models", *(f"{name}={name}.mar" for name in names)]
        # without the console where nobody would rotate what it writes; the log files rotate
        write_whole(temporary / LOGGING, private_logging(console=foreground, models=names))
        command += ["--log-config", str(temporary / LOGGING)]
        with (self.run_dir / CONSOLE).open("wb") as console:
            output = None if foreground else console
            done = subprocess.run(
                command,
                cwd=self.run_dir,
                env=self._environment(temporary, java),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if done.returncode:
            raise self._failure("TorchServe does not start")

    def _environment(self, temporary: Path, java: Path) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key != "TS_CONFIG_FILE"}  # it would win
        env |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
        env |= dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(self.logs))
        return env | {"JAVA_HOME": str(java)}

    def _wait(self, names: list[str], timeout: float) -> None:
        """Wait for the workers: TorchServe's own /ping says Healthy while every one of them fails."""
        deadline = time.monotonic() + timeout
        waiting = names
        while waiting := [name for name in waiting if not self._is_ready(name)]:
            if self.process() is None:
                raise self._failure("TorchServe ended while starting")
            for name in waiting:
                if _has_failed(self._log(), name):
                    time.sleep(0.5)  # the worker's last words come through another thread
                    raise self._failure(f"model {name} does not load", name)
            if time.monotonic() > deadline:
                raise self._failure(f"{', '.join(waiting)} not ready after {timeout:g} s", waiting[0])
            time.sleep(0.3)

    def _is_ready(self, name: str) -> bool:
        try:
            answer = self._manage(f"/models/{name}", "management")
            if answer.status_code == 400:  # the token can expire before a large model is there
                self._manage("/token?type=management", "API")
                return False
            model = answer.json()[0] if answer.status_code == 200 else {}
        except (OSError, ValueError, KeyError, httpx.HTTPError):
            return False
        ready = [worker for worker in model.get("workers", ()) if worker["status"] == "READY"]
        return bool(ready) and len(ready) >= model["minWorkers"]

    def _manage(self, path: str, key: str) -> httpx.Response:
        headers = {}
        if self.settings.get("disable_token_authorization", "false").lower() != "true":  # else nobody writes the file
            headers = {"Authorization": f"Bearer {json.loads(self.key_file.read_text())[key]['key']}"}
        tls = tls_of(self.settings)
        trusted = trusting(tls.certificate) if tls else True
        # a proxy has no part in loopback
        return httpx.get(f"{self.url('management')}{path}", headers=headers, trust_env=False, verify=trusted)

    def _log(self) -> str:
        found = [path for path in (self.run_dir / CONSOLE, self.logs / "ts_log.log") if path.exists()]
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in found)

    def _failure(self, what: str, model: str = "") -> MedadError:
        reason = _last_exception(self._log(), model)
        return MedadError(f"{what}{f': {reason}' if reason else ''}", f"See {self.logs / 'ts_log.log'}")

    def _put_logs_by(self) -> None:
        """Keep the logs of the servers before, of the last few: they tell why one ended."""
        for left in sorted(self.run_dir.glob(f"{self.logs.name}-*"))[: 1 - LOGS_KEPT]:
            shutil.rmtree(left, ignore_errors=True)
        if self.logs.is_dir():
            when = datetime.fromtimestamp(self.logs.stat().st_mtime, UTC)
            kept = self.run_dir / f"{self.logs.name}-{when:%Y%m%dT%H%M%S.%f}"
            self.logs.rename(kept)
            with suppress(FileNotFoundError):
                (self.run_dir / CONSOLE).rename(kept / CONSOLE)

    def _end(self, timeout: float) -> None:
        """Terminate frontend and workers, kill what stays past ``timeout``, and remove what was theirs."""
        process = self.process()
        if process is not None:
            end(process, timeout)
        self._clean()

    def _clean(self) -> None:
        """Remove token and temporary files of a server that has ended; its logs stay."""
        self.key_file.unlink(missing_ok=True)
        remove_temporary(self.run_dir, marks=(LOGGING, PID_FILE))
        (self.run_dir / STATE).unlink(missing_ok=True)


def _has_failed(log: str, model: str) -> bool:
    """Whether a model did not load, or its workers die before they can say so: TorchServe starts them for ever."""
    deaths = re.findall(rf"W-\d+-{re.escape(model)}_\S*-std\w+ MODEL_LOG - Traceback", log)
    return f"Load model failed: {model}," in log or len(deaths) >= DEATHS


def _last_exception(log: str, model: str) -> str:
    """Return the last exception line that a worker of ``model`` (or else the frontend) wrote."""
    if model:
        worker = re.compile(rf"W-\d+-{re.escape(model)}_\S*-std\w+ MODEL_LOG - (.*)")
        log = "\n".join(worker.findall(log))
        trace = log.rpartition("Traceback (most recent call last):")[2]
        ends = [line for line in trace.splitlines()[1:] if line and not line[0].isspace()]
        return re.sub(r"^medad_serve\.errors\.\w+: ", "", ends[0]) if ends else ""
    return next((line for line in reversed(log.splitlines()) if re.search(r"Exception|Error|cannot", line)), "")
