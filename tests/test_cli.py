"""The command line as a user meets it: its exit code and what it prints, of a process where that is the claim."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medad_serve.artifact import MANIFEST
from medad_serve.cli.main import main

Done = subprocess.CompletedProcess[str]
Call = Callable[..., Done]


def _run(*arguments: object, cwd: Path | None = None) -> Done:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "medad_serve.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``call(*arguments)`` runs the command line in this process, in a folder of the test."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["medad-serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return Done(sys.argv, left.value.code or 0, *capsys.readouterr())  # type: ignore[arg-type]

    return called


def _refused(done: Done, code: int, says: str) -> None:
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.strip().splitlines()[-1].startswith("Error: ")


def test_help_names_every_command() -> None:
    done = _run("--help")
    assert done.returncode == 0
    for name in ("archive", "evaluate", "export", "info", "java-home", "phantoms", "predict", "serve", "train"):
        assert name in done.stdout


def test_info_lists_models_with_their_parameters(call: Call) -> None:
    found = json.loads(call("info", "--json").stdout)
    assert found["models"]["ae"]["parameters"] == 4_487_248
    assert {"onnx", "torchscript", "openvino"} == set(found["runtimes"])
    assert int(found["java"]["version"]) >= 11
    assert found["devices"][0] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train"], 2, "name a model"),
        (["train", "ae"], 1, "no data was named"),
        (["train", "none", "--data", "cq500:."], 1, "Choose one of: ae"),
        (["train", "ae", "--data", "cq500:/no/such/folder"], 1, "is not a folder that can be read"),
        (["train", "ae", "--data", "cq500:.", "max_epochs=1"], 1, "Did you mean train.max_epochs?"),
        (["train", "--resume", "nowhere"], 1, "is no run"),
        (["train", "ae", "--resume", "nowhere"], 2, "name nothing else"),
        (["export", "nowhere"], 1, "is no run"),
        (["evaluate", "nowhere"], 1, "is no folder"),
        (["archive", "nowhere"], 1, "medad.json is missing"),
        (["predict", "x.dcm"], 2, "--model NAME or --artifact DIR"),
        (["predict", "x.dcm", "--artifact", "nowhere"], 1, "medad.json is missing"),
        (["bench"], 2, "name artifacts, or ask for --all"),
        (["nothing"], 2, "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_faults_are_one_line_with_the_right_exit_code(call: Call, arguments: list[str], code: int, says: str) -> None:
    _refused(call(*arguments), code, says)


def test_exit_codes_leave_the_process(tmp_path: Path) -> None:
    _refused(_run("predict", "x.dcm", "--artifact", "nowhere", cwd=tmp_path), 1, "medad.json is missing")
    _refused(_run("predict", "x.dcm", cwd=tmp_path), 2, "--model NAME or --artifact DIR")


def test_what_a_foreign_artifact_says_reaches_the_terminal_without_control_characters(
    call: Call, artifact: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "artifact"))
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "\x1b[2J": 1}))
    done = call("predict", "x.dcm", "--artifact", copy)
    assert (done.returncode, "\x1b" in done.stderr) == (1, False)
    assert "[2J: Extra inputs" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = _run("--debug", "predict", "x.dcm", "--artifact", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_unreadable_data_folder_is_one_line(call: Call, cq500: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cq500, tmp_path / "data"))
    for file in copy.rglob("*.dcm"):
        file.write_bytes(b"not a scan")
    _refused(call("train", "ae", "--data", f"cq500:{copy}", "calibration.policy=specificity=0.8"), 1, "could be used")


def test_too_few_patients_say_how_many_it_takes(call: Call, cq500: Path, tmp_path: Path) -> None:
    done = call("train", "ae", "--data", f"cq500:{cq500}", "calibration.policy=specificity=0.99")
    _refused(done, 1, "takes 99 healthy patients")
    assert not (tmp_path / "runs").exists()


def test_evaluate_prints_both_levels_and_the_baselines(call: Call, artifact: Path, tmp_path: Path) -> None:
    done = call("evaluate", artifact, "--out", tmp_path / "m.json")
    assert done.returncode == 0, done.stderr
    for word in ("slice", "patient", "baseline: mean", "baseline: p99", "specificity=0.8"):
        assert word in done.stdout
    found = json.loads(call("evaluate", artifact, "--out", tmp_path / "m.json", "--json").stdout)
    assert found == json.loads((tmp_path / "m.json").read_text())


def test_predict_by_a_run_loads_no_torch(artifact: Path, dicom_files: list[Path]) -> None:
    code = (
        "import sys; from medad_serve.cli.main import cli; sys.argv[0] = 'medad-serve'\n"
        "cli(standalone_mode=False); assert 'torch' not in sys.modules"
    )
    arguments = ["predict", str(dicom_files[0]), "--artifact", str(artifact.parent), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["level"] == "slice"


def test_killed_caches_and_broken_runs_do_not_stay(call: Call, run_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_path, tmp_path / "run", ignore=shutil.ignore_patterns("artifact")))
    (copy / "best.ckpt").write_bytes(b"cut short")
    _refused(call("export", copy), 1, "best.ckpt cannot be read")
    assert not (copy / "artifact").exists()
    (copy / "finished").unlink()
    _refused(call("export", copy), 1, "medad-serve train --resume")


def test_bench_names_a_folder_where_files_are_asked_for(call: Call, tmp_path: Path) -> None:
    done = call("bench", "--io", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} is a folder. Name files" in done.stderr


def test_bench_measures_a_step(call: Call) -> None:
    found = json.loads(call("bench", "--step", "--model", "ae", "--json").stdout)
    [step] = found["step"]
    assert step["model"] == "ae"
    assert step["ms"] > 0
    # Adam keeps the weights four times: value, gradient and two moments.
    assert step["peak GiB"] > 4 * 4 * 4_487_248 / 2**30
