"""What a SageMaker container is given: channels, hyperparameters and the folders that outlive it.

Read from the ``SM_*`` variables of the training toolkit, and where those are absent from the files below
``/opt/ml`` that SageMaker itself writes (docs.aws.amazon.com: "How Amazon SageMaker Provides Training
Information"), so that any image will do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from medad_serve.errors import MedadError
from medad_serve.spec import Frozen, validated

ROOT = Path("/opt/ml")
ROOT_VARIABLE = "MEDAD_SAGEMAKER_ROOT"
"""Names another root, for a trial on one's own machine."""
ROLES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The role of a channel by its name."""
_TOOLKIT = ("sagemaker_", "_tuning_")
"""Begin the names of hyperparameters that are SageMaker's own."""


class JobOptions(Frozen):
    """Hyperparameters of a job that are no settings of its run."""

    model: str | None = None
    config: str | None = None
    layout: str = "folders"
    formats: tuple[str, ...] = Field(("onnx",), min_length=1)
    """What the model is exported to: onnx, torchscript."""
    name: str | None = None
    """Of the served model; the experiment's unless given."""
    version: str = "1.0"

    @field_validator("formats", mode="before")
    @classmethod
    def _formats_may_be_one_text(cls, formats: object) -> object:
        return tuple(f.strip() for f in formats.split(",")) if isinstance(formats, str) else formats


@dataclass(frozen=True)
class Container:
    """One job as its container sees it."""

    channels: dict[str, Path]
    options: JobOptions
    overrides: tuple[str, ...]
    """Every other hyperparameter as ``key=value``."""
    model: Path
    """What is here at the end becomes model.tar.gz."""
    checkpoints: Path
    """Kept in S3 while the job runs, and here again when it is restarted."""
    work: Path
    """Lost with the container."""

    def data(self) -> str | None:
        """Return ``layout:folder`` of the channels, None where there are none.

        One channel is a whole data set. Several are train, val and test of one in class folders, joined by
        links under one root; other layouts take a single channel. Raises MedadError for channels of one role.
        """
        layout = self.options.layout
        known = {name: ROLES[name] for name in self.channels if name in ROLES}
        if len(self.channels) == 1 or len(known) == 1:
            name = next(iter(known or self.channels))
            return f"{layout}:{self.channels[name]}"
        if not known:
            if self.channels:
                raise MedadError(f"none of the channels is data: {', '.join(self.channels)}", "Name one train")
            return None
        if layout != "folders":
            raise MedadError(
                f"layout {layout} takes one channel, there are {', '.join(known)}", "Give the whole data set as train"
            )
        if len(set(known.values())) < len(known):
            raise MedadError(f"two channels have one role: {', '.join(known)}", "Keep one of train, val and test each")
        return f"{layout}:{self._joined({role: self.channels[name] for name, role in known.items()})}"

    def _joined(self, roles: Mapping[str, Path]) -> Path:
        root = self.work / "data"
        root.mkdir(parents=True, exist_ok=True)
        for link in root.iterdir():
            link.unlink()  # of another job tried on this machine
        for role, folder in roles.items():
            (root / role).symlink_to(folder.resolve(), target_is_directory=True)
        return root


def root_of(environ: Mapping[str, str]) -> Path:
    """Return the folder below which everything lies."""
    return Path(environ.get(ROOT_VARIABLE) or ROOT)


def read_container(environ: Mapping[str, str]) -> Container:
    """Read what the container was given; raises MedadError where it cannot be used."""
    root = root_of(environ)
    hosts = _json(environ.get("SM_HOSTS")) or _file(root / "input/config/resourceconfig.json").get("hosts", [])
    if len(hosts) > 1:
        raise MedadError(f"the job has {len(hosts)} instances, one trains", "Ask for an instance count of 1")
    given = _json(environ.get("SM_HPS"))
    parameters: dict[str, Any] = given if given is not None else _file(root / "input/config/hyperparameters.json")
    parameters = {k: _plain(v) for k, v in parameters.items() if not k.startswith(_TOOLKIT)}
    own = {name: parameters.pop(name) for name in JobOptions.model_fields if name in parameters}
    options = validated(JobOptions, {k: str(v) if k != "formats" else v for k, v in own.items()}, "hyperparameters")
    return Container(
        channels=_channels(environ, root),
        options=options,
        overrides=tuple(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in parameters.items()),
        model=Path(environ.get("SM_MODEL_DIR") or root / "model"),
        checkpoints=Path(environ.get("SM_CHECKPOINT_DIR") or root / "checkpoints"),
        work=root / "medad",
    )


def _channels(environ: Mapping[str, str], root: Path) -> dict[str, Path]:
    prefix = "SM_CHANNEL_"
    named = {k.removeprefix(prefix).lower(): Path(v) for k, v in sorted(environ.items()) if k.startswith(prefix)}
    if not named and (root / "input/data").is_dir():
        named = {path.name: path for path in sorted((root / "input/data").iterdir()) if path.is_dir()}
    for name, path in named.items():
        if not path.is_dir():
            raise MedadError(f"channel {name} is no folder: {path}", "Use the input mode File or FastFile")
    return named


def _json(text: str | None) -> Any:
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise MedadError("a variable of SageMaker holds no JSON", "Check SM_HPS and SM_HOSTS") from None


def _file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise MedadError(f"{path} holds no JSON object", "Check the hyperparameters of the job")
    return found


def _plain(value: Any) -> Any:
    """Undo the JSON that the SageMaker SDK writes around texts."""
    if isinstance(value, str) and value[:1] == value[-1:] == '"' and len(value) > 1:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
