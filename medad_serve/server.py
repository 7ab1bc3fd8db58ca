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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from medad_serve.errors import MedadError
from medad_serve.export.store import (
    LOGGING,
    PROPERTIES,
    check_name,
    model_config,
    private_logging,
    read_properties,
    verify,
)
from medad_serve.files import write_whole
from medad_serve.java import java_home

FRONTEND = "org.pytorch.serve.ModelServer"
KINDS = ("inference", "management", "metrics")
KEY_FILE = "key_file.json"
STATE = "server.json"


@dataclass(frozen=True)
class Ports:
    """Ports in place of those in the store's config.properties; None keeps them."""

    inference: int | None = None
    management: int | None = None
    metrics: int | None = None

    @classmethod
    def free(cls) -> Ports:
        """Return ports that nobody listens on, so that a server of the user's own is left alone."""
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            return cls(*(each.getsockname()[1] for each in sockets))


class Server:
    """One TorchServe over ``store``: running, or to be started."""

    def __init__(self, store: Path, ports: Ports = Ports()) -> None:
        if not store.is_dir():
            raise MedadError(f"there is no model store at {store}", "Run: medad-serve archive ARTIFACT")
        self.store = store.resolve()
        self.settings = _settings(self.store, ports)
        self.run_dir = run_directory(self.store, _port(self.url("inference")))
        self.key_file = self.run_dir / KEY_FILE
        self.logs = self.run_dir / "logs"

    def url(self, kind: str) -> str:
        """Return the address of ``inference``, ``management`` or ``metrics``, as a client reaches it."""
        return self.settings[f"{kind}_address"].replace("//0.0.0.0", "//127.0.0.1")

    def start(self, models: Sequence[str] = (), *, timeout: float = 300, foreground: bool = False) -> list[str]:
        """Verify the archives, start TorchServe and return the names served once every worker is ready.

        ``models`` empty serves every archive of the store. ``foreground`` shows TorchServe's log. Raises
        MedadError for an archive that does not verify, no Java, a port in use, or a model that does not load
        (with the worker's own reason); nothing is left running then.
        """
        if self.process() is not None:
            raise MedadError(f"a server already runs at {self.url('inference')}", "Run: medad-serve serve --stop")
        names = list(dict.fromkeys(models)) or sorted(mar.stem for mar in self.store.glob("*.mar"))
        if not names:
            raise MedadError(f"{self.store} holds no archive", "Run: medad-serve archive ARTIFACT")
        for name in names:
            self._check_model(name)
        java = java_home()
        for kind in KINDS:
            _check_port(kind, self.settings[f"{kind}_address"])
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

        TorchServe cuts off requests that are being answered, so connections get up to ``drain`` seconds to
        end first. Raises MedadError if none is running.
        """
        process = self.process()
        if process is None:
            others = ", ".join(sorted(p.name.removeprefix(".server-") for p in _running(self.store))) or "none"
            raise MedadError(
                f"no server runs at {self.url('inference')}", f"Ports with a server of this store: {others}"
            )
        deadline = time.monotonic() + drain
        while time.monotonic() < deadline and _connections(process, _port(self.url("inference"))):
            time.sleep(0.1)
        self._end(timeout)

    def process(self) -> psutil.Process | None:
        """Return TorchServe's frontend process, None where it does not run."""
        return _process(self.run_dir)

    def _check_model(self, name: str) -> None:
        check_name(name)
        mar = self.store / f"{name}.mar"
        verify(mar)
        largest = int(model_config(mar).get("handler", {}).get("max_answer_bytes", 0))
        if largest > int(self.settings.get("max_response_size", 6_553_500)):
            raise MedadError(
                f"max_response_size in {self.store / PROPERTIES} is below what {name} was archived with",
                "Raise it, or archive the model again",
            )

    def _launch(self, names: list[str], java: Path, foreground: bool) -> None:
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="medad-serve-"))
        write_whole(self.run_dir / STATE, json.dumps({"temporary": str(temporary), "models": names}) + "\n")
        lines = [f"{key}={value}" for key, value in self.settings.items()]
        write_whole(self.run_dir / PROPERTIES, "\n".join(lines) + "\n")
        shutil.rmtree(self.logs, ignore_errors=True)
        command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs"]
        command += ["--model-store", str(self.store), "--ts-config", PROPERTIES]
        command += ["--models", *(f"{name}={name}.mar" for name in names)]
        # without the console where nobody would rotate what it writes; the log files rotate
        write_whole(temporary / LOGGING, private_logging(console=foreground))
        command += ["--log-config", str(temporary / LOGGING)]
        with (self.run_dir / "console.log").open("wb") as console:
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
                if f"Load model failed: {name}," in self._log():
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
        # a proxy has no part in loopback
        return httpx.get(f"{self.url('management')}{path}", headers=headers, trust_env=False)

    def _log(self) -> str:
        found = [path for path in (self.run_dir / "console.log", self.logs / "ts_log.log") if path.exists()]
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in found)

    def _failure(self, what: str, model: str = "") -> MedadError:
        reason = _last_exception(self._log(), model)
        return MedadError(f"{what}{f': {reason}' if reason else ''}", f"See {self.logs / 'ts_log.log'}")

    def _end(self, timeout: float) -> None:
        """Terminate frontend and workers, kill what stays past ``timeout``, and remove what was theirs."""
        process = self.process()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
                process.terminate()
                deadline = time.monotonic() + timeout
                while time.monotonic() < deadline and any(_lives(member) for member in family):
                    time.sleep(0.1)
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
        self._clean()

    def _clean(self) -> None:
        """Remove token and temporary files of a server that has ended; its logs stay."""
        self.key_file.unlink(missing_ok=True)
        temporary = _temporary(self.run_dir)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        (self.run_dir / STATE).unlink(missing_ok=True)


def run_directory(store: Path, port: int) -> Path:
    """Return where the server of ``store`` at an inference port keeps its token, settings and logs."""
    return store / f".server-{port}"


def _settings(store: Path, ports: Ports) -> dict[str, str]:
    """Return config.properties of the store, or the packaged one, with the ports put in."""
    own = store / PROPERTIES
    packaged = Path(str(files("medad_serve").joinpath(PROPERTIES)))
    settings = read_properties(own if own.exists() else packaged)
    for kind, port in zip(KINDS, (8080, 8081, 8082), strict=True):
        settings.setdefault(f"{kind}_address", f"http://127.0.0.1:{port}")
        chosen = getattr(ports, kind)
        if chosen is not None:
            parts = urlsplit(settings[f"{kind}_address"])
            settings[f"{kind}_address"] = f"{parts.scheme}://{parts.hostname}:{chosen}"
    for kind in KINDS[:2]:
        settings.setdefault(f"grpc_{kind}_port", "0")  # a free one; its fixed default would collide
    return settings


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or {"https": 443}.get(parts.scheme, 80)


def _check_port(kind: str, url: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((urlsplit(url).hostname or "127.0.0.1", _port(url)))
        except OSError as error:
            raise MedadError(
                f"{kind} port {_port(url)} cannot be opened ({error.strerror})",
                f"Choose another with --{kind}-port, or end what uses it",
            ) from None


def _last_exception(log: str, model: str) -> str:
    """Return the last exception line that a worker of ``model`` (or else the frontend) wrote."""
    if model:
        worker = re.compile(rf"W-\d+-{re.escape(model)}_\S*-std\w+ MODEL_LOG - (.*)")
        log = "\n".join(worker.findall(log))
        trace = log.rpartition("Traceback (most recent call last):")[2]
        ends = [line for line in trace.splitlines()[1:] if line and not line[0].isspace()]
        return re.sub(r"^medad_serve\.errors\.\w+: ", "", ends[0]) if ends else ""
    return next((line for line in reversed(log.splitlines()) if re.search(r"Exception|Error|cannot", line)), "")


def _temporary(run_dir: Path) -> Path | None:
    try:
        return Path(json.loads((run_dir / STATE).read_text())["temporary"])
    except (OSError, ValueError, KeyError):
        return None


def _process(run_dir: Path) -> psutil.Process | None:
    temporary = _temporary(run_dir)
    try:
        process = psutil.Process(int((temporary / ".model_server.pid").read_text())) if temporary else None
        return process if process and FRONTEND in process.cmdline() and _lives(process) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _lives(process: psutil.Process) -> bool:
    """A zombie has ended, even where nobody collects it (PID 1 of a container)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _running(store: Path) -> list[Path]:
    return [path for path in store.glob(".server-*") if _process(path) is not None]


def _connections(process: psutil.Process, port: int) -> int:
    try:
        return sum(c.status == "ESTABLISHED" and c.laddr.port == port for c in process.net_connections("tcp"))
    except psutil.Error:
        return 0
