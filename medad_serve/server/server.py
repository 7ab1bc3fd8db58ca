"""Start, watch and stop TorchServe over a model store.

Each server has a directory of its own, ``<store>/.server-<port>``: TorchServe writes key_file.json into its
working directory, and two servers in one would overwrite each other's. Its temporary directory is its own
too, since TorchServe keeps process id, worker sockets and unpacked models there under fixed names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from medad_serve.errors import MedadError
from medad_serve.export.inspection import AGAIN
from medad_serve.export.store import LOGGING, PROPERTIES, check_name, inspect, private_logging, read_properties
from medad_serve.files import write_whole
from medad_serve.java import java_home
from medad_serve.runtime import lacking
from medad_serve.server.drain import drain as wait_for_answers
from medad_serve.server.health import Watch
from medad_serve.server.logs import Logs
from medad_serve.server.management import Management
from medad_serve.server.process import (
    PID_FILE,
    PREFIX,
    STATE,
    end,
    models_of,
    process_of,
    remove_temporary,
    running,
    temporary_of,
)
from medad_serve.server.settings import KINDS, Ports, check_port, port_of, run_directory, settings_of, tls_of
from medad_serve.server.supervisor import NOTIFY_SOCKET, tell
from medad_serve.server.tls import Tls, trusting

KEY_FILE = "key_file.json"
GIVE_UP_S = 180
"""Longer than any worker takes to be started anew."""
LAST_WORDS_S = 5
"""That a worker which did not load its model has to say why."""
LOCK = "lock"


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
        self._logs = Logs(self.run_dir)
        self.logs = self._logs.folder

    @classmethod
    def running_at(cls, store: Path, port: int | None) -> Server:
        """Return the server that runs over ``store`` at an inference port, with the settings that it was started with.

        Raises MedadError where none does.
        """
        made = cls(store, Ports(port))
        made.check_runs()
        made.settings = read_properties(made.run_dir / PROPERTIES)
        return made

    def url(self, kind: str) -> str:
        """Return the address of ``inference``, ``management`` or ``metrics``, as a client reaches it."""
        return self.settings[f"{kind}_address"].replace("//0.0.0.0", "//127.0.0.1")

    def start(self, models: Sequence[str] = (), *, timeout: float = 300, foreground: bool = False) -> list[str]:
        """Verify the archives, start TorchServe and return the names served once every worker is ready.

        ``models`` empty serves every archive of the store that verifies; ``refused`` tells of the others.
        ``foreground`` shows TorchServe's log. Raises MedadError for a model named that does not verify, none that
        does, no Java, a port in use, a certificate that cannot be used, or a model that does not load (with the
        worker's own reason), or another command that starts or stops this server; nothing is left running then.
        """
        self._check_absent()
        tls = tls_of(self.settings)
        if tls is not None:
            self.settings |= tls.settings()
        names = self._verified(list(dict.fromkeys(models)))
        java = java_home()
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        with self._alone():
            self._check_absent()  # while the archives were verified another command may have started it
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

    def wait(self, *, give_up_after: float = GIVE_UP_S) -> None:
        """Return once another command has stopped the server that was started here, telling the supervisor of it.

        Raises MedadError where it ended by itself, or a model has had no ready worker for ``give_up_after`` seconds
        (with the worker's last reason; the server is ended then).
        """
        ours, temporary = self.process(), temporary_of(self.run_dir)
        with self.management() as management:
            watch = Watch(management, self.models(), give_up_after)
            tell("READY=1")
            while ours is not None and self.process() == ours:
                tell("WATCHDOG=1")
                if lost := watch.given_up():
                    failure = self._logs.failure(f"no worker of {lost} has been ready for {give_up_after:g} s", lost)
                    self.stop(drain=0)
                    raise failure
                time.sleep(0.5)
        with self._alone(wait=60):  # one that stops it removes its state last
            if temporary is not None and temporary_of(self.run_dir) == temporary:
                self._clean()
                raise self._logs.failure("TorchServe ended by itself")

    def stop(self, *, drain: float = 10, timeout: float = 60) -> None:
        """End the server and return when its processes are gone.

        TorchServe cuts off requests that are being answered, so they get up to ``drain`` seconds to end first.
        Raises MedadError if none is running, or another command starts or stops it.
        """
        self.check_runs()
        with self._alone():
            process = self.check_runs()
            tell("STOPPING=1")
            try:
                wait_for_answers(process, port_of(self.url("inference")), drain)
            finally:  # told to stop twice, it stops
                self._end(timeout)

    def process(self) -> psutil.Process | None:
        """Return TorchServe's frontend process, None where it does not run."""
        return process_of(self.run_dir)

    def models(self) -> list[str]:
        """Return the names of the models that the running server was started with."""
        return models_of(self.run_dir)

    def check_runs(self) -> psutil.Process:
        """Return TorchServe's frontend process; raises MedadError, naming other servers, where it does not run."""
        process = self.process()
        if process is None:
            others = ", ".join(sorted(p.name.removeprefix(".server-") for p in running(self.store))) or "none"
            raise MedadError(
                f"no server runs at {self.url('inference')}", f"Ports with a server of this store: {others}"
            )
        return process

    def management(self) -> Management:
        """Return the management API of this server, as its settings say."""
        tls = tls_of(self.settings)
        # else nobody writes the file
        has_tokens = self.settings.get("disable_token_authorization", "false").lower() != "true"
        verify = trusting(tls.certificate) if tls else True
        return Management(self.url("management"), self.key_file if has_tokens else None, verify)

    @contextmanager
    def _alone(self, wait: float = 0) -> Iterator[None]:
        """Let one command at a time start or stop this server; raises MedadError where another is at it."""
        try:
            with FileLock(self.run_dir / LOCK, timeout=wait):
                yield
        except Timeout:
            raise MedadError(
                f"another command is starting or stopping the server at {self.url('inference')}",
                "Wait until it has ended, or end it",
            ) from None

    def _check_absent(self) -> None:
        if self.process() is not None:
            raise MedadError(f"a server already runs at {self.url('inference')}", "Run: medad-serve serve --stop")

    def _verified(self, named: list[str]) -> list[str]:
        """Return the models to serve; one that nobody named costs the others nothing where it does not verify."""
        there = sorted(mar.stem for mar in self.store.glob("*.mar"))
        if not there:
            raise MedadError(f"{self.store} holds no archive", "Run: medad-serve archive ARTIFACT")
        if missing := [name for name in named if name not in there]:
            raise MedadError(f"{self.store} holds no {', '.join(missing)}", f"It holds: {', '.join(there)}")
        found = named or there
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
        if reason := lacking(config.handler.runtime):  # else workers die one after the other
            raise MedadError(f"{name} cannot be served here: {reason}", "Or archive it with another --runtime")
        if config.handler.max_answer_bytes > int(self.settings.get("max_response_size", 6_553_500)):
            raise MedadError(
                f"max_response_size in {self.store / PROPERTIES} is below what {name} was archived with",
                "Raise it, or archive the model again",
            )

    def _launch(self, names: list[str], java: Path, foreground: bool) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=PREFIX))
        write_whole(self.run_dir / STATE, json.dumps({"temporary": str(temporary), "models": names}) + "\n")
        lines = [f"{key}={value}" for key, value in self.settings.items()]
        write_whole(self.run_dir / PROPERTIES, "\n".join(lines) + "\n")
        self._logs.put_by()
        command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs"]
        command += ["--model-store", str(self.store), "--ts-config", PROPERTIES]
        command += ["--models", *(f"{name}={name}.mar" for name in names)]
        # without the console where nobody would rotate what it writes; the log files rotate
        write_whole(temporary / LOGGING, private_logging(console=foreground, models=names))
        command += ["--log-config", str(temporary / LOGGING)]
        with self._logs.console.open("wb") as console:
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
            raise self._logs.failure("TorchServe does not start")

    def _environment(self, temporary: Path, java: Path) -> dict[str, str]:
        # the first would win over ours, the second is this process's own
        env = {key: value for key, value in os.environ.items() if key not in ("TS_CONFIG_FILE", NOTIFY_SOCKET)}
        env |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
        env |= dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(self.logs))
        return env | {"JAVA_HOME": str(java)}

    def _wait(self, names: list[str], timeout: float) -> None:
        """Wait for the workers: TorchServe's own /ping says Healthy while every one of them fails."""
        deadline = time.monotonic() + timeout
        waiting = names
        with self.management() as management:
            while waiting := [name for name in waiting if not _is_ready(management, name)]:
                if self.process() is None:
                    raise self._logs.failure("TorchServe ended while starting")
                for name in waiting:
                    if self._logs.tell_failure(name):
                        raise self._logs.failure(f"model {name} does not load", name, patience=LAST_WORDS_S)
                if time.monotonic() > deadline:
                    raise self._logs.failure(f"{', '.join(waiting)} not ready after {timeout:g} s", waiting[0])
                time.sleep(0.3)

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


def _is_ready(management: Management, model: str) -> bool:
    try:
        workers = management.workers(model)
    except MedadError:  # it does not listen yet, or writes its key file this moment
        return False
    return workers.ready >= workers.wanted
