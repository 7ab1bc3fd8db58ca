from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from medad_serve.errors import MedadError
from medad_serve.models import family
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import create_run
from medad_serve.training.weights import names_weights, read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
DATA = "folders:/nowhere"


def _same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert _same(read_weights(str(tmp_path / "w.safetensors")))


@pytest.mark.parametrize("ending", ["pth", "pt", "bin", "ckpt"])
@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model",), ("model", "state_dict")])
def test_torch_files_are_read_however_a_checkpoint_nests_them(
    tmp_path: Path, ending: str, keys: tuple[str, ...]
) -> None:
    saved: dict[str, object] = dict(STATE)
    for key in keys:
        saved = {key: saved, "epoch": 3}
    torch.save(saved, tmp_path / f"w.{ending}")
    assert _same(read_weights(str(tmp_path / f"w.{ending}")))


class Code:
    """What a hostile file would have torch call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Code()}, "w.pth")
    with pytest.raises(MedadError, match=r"w\.pth holds pickled code.*safetensors"):
        read_weights("w.pth")
    torch.save(torch.nn.Linear(2, 2), "whole.pth")
    with pytest.raises(MedadError, match="pickled code"):
        read_weights("whole.pth")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_and_missing_files_are_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(MedadError, match="there are no weights at"):
        read_weights(str(path))
    for content in (b"", b"no weights", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"):
        path.write_bytes(content)
        with pytest.raises(MedadError, match="no whole file|which is not read|holds no tensors"):
            read_weights(str(path))


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    for name, save in (("w.safetensors", save_file), ("w.pth", torch.save)):
        save(STATE, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(MedadError, match="no whole file|which is not read"):
            read_weights(str(tmp_path / name))


def test_a_list_of_tensors_has_no_names(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "w.pth")
    with pytest.raises(MedadError, match="holds no tensors by name"):
        read_weights(str(tmp_path / "w.pth"))


def test_a_run_is_no_file_of_weights(tmp_path: Path) -> None:
    assert not names_weights(str(tmp_path))
    assert not names_weights("runs/ae")
    assert all(names_weights(name) for name in ("hf:a/b", "x/w.safetensors", "w.PTH"))


@pytest.mark.parametrize("name", ["hf:alone", "hf:", "hf:a/b/c", "hf:/b"])
def test_the_hub_is_asked_for_an_organisation_and_a_name(name: str) -> None:
    with pytest.raises(MedadError, match="names no model of the hub"):
        read_weights(name)


def test_without_the_hub_one_line_says_how_to_get_the_file(tmp_path: Path) -> None:
    """A process of its own: HF_HUB_OFFLINE is read when the library is imported."""
    script = "from medad_serve.training.weights import read_weights; read_weights('hf:org/model')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert said.stderr.splitlines()[-1] == (
        "medad_serve.errors.MedadError: hf:org/model is not in the local cache and the hub cannot be reached. "
        "Where it can be: hf download org/model model.safetensors; then give init=FILE with the file it names"
    )


def _hub(monkeypatch: pytest.MonkeyPatch, cached: dict[str, Path]) -> list[tuple[str, str | None, bool]]:
    """Put a hub in place that has ``cached`` and cannot be reached; return what it is asked."""
    asked: list[tuple[str, str | None, bool]] = []

    def download(name: str, file: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((file, revision, local_files_only))
        if file not in cached:
            raise LocalEntryNotFoundError("no")
        return str(cached[file])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_the_cache_of_the_hub_holds_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    (save_file if file.endswith("safetensors") else torch.save)(STATE, tmp_path / file)  # type: ignore[operator]
    asked = _hub(monkeypatch, {file: tmp_path / file})
    assert _same(read_weights("hf:org/name@v1"))
    assert asked[-1] == (file, "v1", True)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _hub(monkeypatch, {})
    with pytest.raises(MedadError, match="cannot be reached"):
        read_weights("hf:org/name")
    assert [local for *_, local in asked] == [True, True, False]


@pytest.fixture(scope="module")
def b0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A B0 of three colours and a thousand classes, as the hub keeps it."""
    path = tmp_path_factory.mktemp("weights") / "b0.safetensors"
    save_file(timm.create_model("efficientnet_b0").state_dict(), path)
    return path


def test_a_configuration_keeps_where_the_weights_are(b0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(b0.parent)
    found = resolve("efficientnet_b0", DATA, None, [f"init={b0.name}"])
    assert found.init == str(b0)
    assert found.prep == family("efficientnet_b0").prep


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b1"])
def test_weights_of_another_architecture_are_refused_before_data_is_read(tmp_path: Path, name: str) -> None:
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(MedadError, match=r"another architecture: \d+ of their \d+ tensors fit \d+"):
        resolve("efficientnet_b0", DATA, None, [f"init={tmp_path / 'w.safetensors'}"])


def test_missing_weights_are_refused_before_data_is_read() -> None:
    with pytest.raises(MedadError, match=r"there are no weights at .*gone\.pth"):
        resolve("efficientnet_b0", DATA, None, ["init=gone.pth"])


def test_a_model_that_builds_on_a_run_takes_no_file(b0: Path) -> None:
    with pytest.raises(MedadError, match="builds on a trained vqvae3d"):
        resolve("fracture", DATA, None, [f"init={b0}"])


def test_training_starts_from_them_and_says_so(cq500: Path, tmp_path: Path) -> None:
    """Any registered model can: here an autoencoder, whose run of no epoch's length would keep them."""
    overrides = ["settings.hidden_dim=16", "calibration.policy=specificity=0.8", "calibration.method=held_out"]
    quick = [*overrides, "train.max_epochs=1", "train.learning_rate=1e-12"]
    torch.manual_seed(5)
    state = family("ae").build(settings={"hidden_dim": 16}).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth")
    run = create_run(resolve("ae", f"cq500:{cq500}", None, [*quick, f"init={tmp_path / 'w.pth'}"]), tmp_path)
    said: list[str] = []
    fit(run, run.prepared(), said.append)
    assert any(line.startswith("init: loaded ") for line in said), said
    after = run.trained().state_dict()
    drawn = [name for name, value in state.items() if name.endswith("weight") and value.ndim > 1]
    assert drawn
    assert all(torch.allclose(after[name], state[name], atol=1e-6) for name in drawn)


def test_a_supervised_run_keeps_the_split_of_the_supervised_run_it_starts_from(tmp_path: Path) -> None:
    """Otherwise who trained the first would choose the second."""
    for name, count in (("NORMAL", 60), ("PNEUMONIA", 40)):
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        for number in range(count):
            (place / f"{name}{number:03d}_1.png").write_bytes(b"x")
    first = create_run(resolve("efficientnet_b0", f"folders:{tmp_path / 'data'}", None, []), tmp_path / "runs")
    (first.path / "finished").write_text("0 epochs\n")
    torch.save(
        {"state_dict": {f"model.{n}": v for n, v in first.build().state_dict().items()}}, first.path / "best.ckpt"
    )
    second = create_run(resolve("efficientnet_b0", None, None, [f"init={first.path}", "seed=1"]), tmp_path / "runs")
    assert second.path != first.path
    assert second.split == first.split
    assert {role for p, role in first.split.roles.items() if p.startswith("PNEU")} == {"train", "validation", "test"}
