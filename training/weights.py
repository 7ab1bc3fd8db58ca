"""Weights that ``init`` names: a file of tensors, or a model of the Hugging Face hub."""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from medad_serve.errors import MedadError

HUB = "hf:"
TENSORS, PICKLED = ".safetensors", (".pth", ".pt", ".bin", ".ckpt")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a repository of the hub calls its weights, the safer one first."""
NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Under which of these a checkpoint keeps the weights of its model."""
State = dict[str, Tensor]


def names_weights(init: str) -> bool:
    """Whether ``init`` names weights rather than a run."""
    return init.startswith(HUB) or Path(init).suffix.lower() in (TENSORS, *PICKLED) or Path(init).is_file()


def absolute_weights(init: str) -> str:
    """Return ``init`` so that a run means it from anywhere."""
    return init if init.startswith(HUB) else str(Path(init).expanduser().resolve())


def read_weights(init: str) -> State:
    """Return the tensors of ``FILE.safetensors``, ``FILE.pth`` (and the like) or ``hf:org/name[@revision]``, by name.

    Raises MedadError where there is none, it cannot be read, or holds pickled code: none is ever run.
    """
    path = _from_hub(init) if init.startswith(HUB) else Path(init)
    if not path.is_file():
        raise MedadError(f"there are no weights at {path}", "Name a .safetensors or .pth file, hf:ORG/NAME or a run")
    try:
        found = _read_tensors(path) if path.suffix.lower() == TENSORS else _read_pickled(path)
    except UnpicklingError:
        raise MedadError(
            f"{path} holds pickled code or no tensors at all, which is not read",
            "Save its state_dict alone, as .safetensors",
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError):
        raise MedadError(f"{path} is no whole file of weights", "Fetch or save it again") from None
    if not found:
        raise MedadError(f"{path} holds no tensors by name", "Save the state_dict of a model")
    return found


def _read_tensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError from error


def _read_pickled(path: Path) -> State:
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(found, dict) and (inner := next((k for k in NESTED if isinstance(found.get(k), dict)), None)):
        found = found[inner]
    if not isinstance(found, dict):
        return {}
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _from_hub(init: str) -> Path:
    """Return the file of a model of the hub in the local cache, fetched where it is not there."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, revision = init.removeprefix(HUB).partition("@")
    if len(parts := name.split("/")) != 2 or not all(parts):
        raise MedadError(
            f"{init!r} names no model of the hub", "Write hf:ORG/NAME, e.g. hf:timm/efficientnet_b0.ra_in1k"
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells each of its attempts
    try:
        path = _hub_file(name, revision or None, local_files_only=True) or _hub_file(name, revision or None)
    except GatedRepoError:
        raise MedadError(f"{init} asks for access", "Accept its terms and log in: hf auth login") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise MedadError(f"the hub has no {init} ({type(error).__name__})", "Check its name") from None
    except OSError:  # of any library below that speaks to the network
        raise MedadError(
            f"{init} is not in the local cache and the hub cannot be reached",
            f"Where it can be: hf download {name} {HUB_FILES[0]}; then give init=FILE with the file it names",
        ) from None
    if path is None:
        raise MedadError(f"{init} has none of {', '.join(HUB_FILES)}", "Fetch its weights and give init=FILE")
    return path


def _hub_file(name: str, revision: str | None, *, local_files_only: bool = False) -> Path | None:
    """Return the first of the files that there is; raises LocalEntryNotFoundError where the hub cannot be asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(name, file, revision=revision, local_files_only=local_files_only))
        except LocalEntryNotFoundError:
            if not local_files_only:
                raise
        except EntryNotFoundError:
            continue
    return None
