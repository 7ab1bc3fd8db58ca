"""The resolved configuration of a run: model defaults, then a recipe or file, then ``key=value``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, field_validator

from medad_serve.calibration import DEFAULT_POLICY, parse_aggregation, parse_policy
from medad_serve.data.splits import Method, SplitSettings
from medad_serve.errors import MedadError
from medad_serve.models import Family, family
from medad_serve.models.base import device_for
from medad_serve.spec import Frozen, InputSpec, PrepSpec, read_yaml, validated
from medad_serve.training.augment import AugmentSettings
from medad_serve.training.loggers import LoggerName, require_logger
from medad_serve.training.weights import absolute_weights, names_weights, read_weights

MONITOR = r"^(train|val)/\w+$"


class TrainSettings(Frozen):
    """How the weights are found."""

    max_epochs: int = Field(250, ge=1)
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    scheduler: Literal["constant", "cosine", "plateau"] = "constant"
    """``cosine`` falls to 0 over the run; ``plateau`` divides by 10 after a third of ``patience``."""
    plateau_monitor: str | None = Field(None, pattern=MONITOR)
    """What ``plateau`` watches; none watches ``monitor``."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(None, gt=0)
    """Largest gradient norm; none leaves gradients as they are."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    validate_every: int = Field(1, ge=1)
    """Epochs from one validation (and row of ``metrics.csv``) to the next: on few training images it costs most."""
    monitor: str = Field("val/loss", pattern=MONITOR)
    """What early stopping and the best checkpoint watch; ``val/auroc`` and the like are maximised."""
    patience: int = Field(50, ge=1)
    min_delta: float = Field(0.0, ge=0)
    augment: AugmentSettings = AugmentSettings()
    checkpoint_seconds: float = Field(30.0, ge=0)
    """Time between two writes of the last checkpoint: what a kill can cost."""

    @field_validator("precision", mode="before")
    @classmethod
    def _precision_may_be_short(cls, precision: object) -> object:
        return "32-true" if precision in (32, "32") else precision


class CalibrationSettings(Frozen):
    """How cutoffs will be made at export; the split is drawn for it."""

    method: Method = "auto"
    policy: str = DEFAULT_POLICY
    aggregation: str = "max"

    @field_validator("policy")
    @classmethod
    def _policy_is_known(cls, policy: str) -> str:
        try:
            parse_policy(policy)
        except MedadError as error:
            raise ValueError(str(error)) from None
        return policy

    @field_validator("aggregation")
    @classmethod
    def _aggregation_is_known(cls, name: str) -> str:
        try:
            parse_aggregation(name)
        except MedadError as error:
            raise ValueError(str(error)) from None
        return name


class RunConfig(Frozen):
    """Everything that a run was made from; ``config.yaml`` holds it resolved."""

    model: str
    experiment: str
    data: str
    """``layout:directory``."""
    report_on: tuple[str, ...] = ()
    """Other data sets, ``layout:directory`` each, that evaluation reports beside the run's own."""
    data_options: dict[str, Any] = Field(default_factory=dict)
    init: str | None = None
    """A finished run whose weights this one starts from, and whose split it keeps; or weights alone, of which it
    takes what fits: FILE.safetensors, FILE.pth or hf:ORG/NAME."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of the model."""
    input: InputSpec
    prep: PrepSpec
    split: SplitSettings = SplitSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    train: TrainSettings = TrainSettings()
    seed: int = Field(0, ge=0, lt=2**32)
    logger: LoggerName = "none"
    """Beside ``metrics.csv``, which is always written."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")

    def options_of(self, source: str) -> dict[str, Any]:
        """Return the options that hold for a data set: the run's own, where it is laid out as the run's."""
        return self.data_options if source.partition(":")[0] == self.data.partition(":")[0] else {}

    @field_validator("experiment")
    @classmethod
    def _experiment_is_a_folder_name(cls, name: str) -> str:
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError("must be a plain folder name")
        return name


SWEEP = "_sweep"
"""Ends the names of files beside the recipes that hold the space of a sweep."""
ABLATION = "_ablation"
"""Ends the names of those that hold the variants of an ablation."""


def recipe_path(name: str) -> Path:
    """Return the file that ``--config`` names: a path, or one of the recipes that come with the package."""
    if Path(name).is_file():
        return Path(name)
    recipes = Path(str(files("medad_serve.training"))) / "recipes"
    known = ", ".join(sorted(p.stem for p in recipes.glob("*.yaml") if not p.stem.endswith((SWEEP, ABLATION))))
    if name in known.split(", "):
        return recipes / f"{name}.yaml"
    raise MedadError(f"there is no configuration {name!r}", f"Name a YAML file or a recipe: {known}")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def _dotted(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every field that ``key=value`` can name, e.g. ``train.batch_size``."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _dotted(kind, f"{prefix}{name}.")


def known_keys(model: str) -> set[str]:
    """Return every setting of a model's runs by its dotted name."""
    return {*_dotted(RunConfig), *_dotted(family(model).settings, "settings.")}


def model_named(model: str | None, config: str | None, overrides: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the model and the overrides of a command line, on which a configuration can stand for the model."""
    if model and "=" in model:
        overrides, model = (model, *overrides), None
    if model is None:
        named = read_yaml(recipe_path(config)).get("model") if config else None
        if named is None:
            raise MedadError("no model was named", "'medad-serve info' lists them")
        model = str(named)
    return model, overrides


_SHORT = {"fold": "split.fold"}


def parse_overrides(pairs: Iterable[str], model: str) -> dict[str, Any]:
    """Turn ``key=value`` into nested data; an unknown key is refused with the nearest known one."""
    known = known_keys(model)
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise MedadError(f"{pair!r} is no key=value", "Write e.g. train.max_epochs=20")
        key = _SHORT.get(key, key)
        if key not in known and not key.startswith("data_options."):
            ends = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
            near = ends or difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {' or '.join(sorted(near))}?" if near else f"Known: {', '.join(sorted(known))}"
            raise MedadError(f"there is no setting {key!r}", hint)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise MedadError(f"the value of {key} cannot be read", "Write a number, a word or [a, list]") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        out = _merge(out, value)
    return out


def _numbers(data: Any) -> Any:
    """Read ``1e-4``, which YAML 1.1 takes for text, as the number that it is."""
    if isinstance(data, dict):
        return {key: _numbers(value) for key, value in data.items()}
    if isinstance(data, str) and data[:1] in "+-.0123456789" and "e" in data.lower():
        try:
            return float(data)
        except ValueError:
            return data
    return data


def absolute(source: str) -> str:
    """Return ``layout:directory`` with its directory resolved, so that a run means it from anywhere."""
    name, colon, directory = source.partition(":")
    return f"{name}:{Path(directory).expanduser().resolve()}" if colon and "://" not in source else source


def _adopted(chosen: Family, init: str) -> dict[str, Any]:
    """Return what follows from the run that a new one starts from: the same data, prepared in the same way."""
    from medad_serve.training.run import open_run  # which itself reads RunConfig

    start = open_run(Path(init))
    kept = start.config.model_dump(include={"input", "prep", "data", "data_options", "split", "calibration"})
    own = start.config.model == chosen.name
    if not own and start.config.model != chosen.builds_on:
        raise MedadError(
            f"{chosen.name} cannot start from {start.path}, a run of {start.config.model}",
            f"Name a run of {chosen.builds_on or chosen.name}",
        )
    settings = start.config.settings if own else chosen.adopt(start.config.settings)
    return {**kept, "settings": settings, "init": str(start.path.resolve())}


def resolve(
    model: str, data: str | None, config: str | None, overrides: Iterable[str], report_on: Iterable[str] = ()
) -> RunConfig:
    """Resolve a configuration; every fault is one line that names its field.

    ``report_on`` names data sets beside ``data`` that evaluation reports, over those of ``config``.
    """
    chosen = family(model)
    resolved: dict[str, Any] = {
        "model": model,
        "experiment": model,
        "input": chosen.input.model_dump(),
        "prep": chosen.prep.model_dump(),
        "train": chosen.train,
        "calibration": chosen.calibration,
    }
    stored = read_yaml(recipe_path(config)) if config else {}
    if stored.get("model", model) != model:
        raise MedadError(f"configuration {config} is for model {stored['model']}", f"It cannot train {model}")
    asked = _merge(stored, parse_overrides(overrides, model))
    init = str(asked.pop("init", None) or "")
    if init and not names_weights(init):
        resolved = _merge(resolved, _adopted(chosen, init))
    elif chosen.builds_on:
        raise MedadError(
            f"{model} builds on a trained {chosen.builds_on}",
            f"Train that first, then add init=RUN, e.g. init=runs/{chosen.builds_on}",
        )
    elif init:
        resolved["init"] = absolute_weights(init)
    resolved = _merge(resolved, asked)
    if data:
        resolved["data"] = data
    if "data" not in resolved:
        raise MedadError("no data was named", "Give --data LAYOUT:DIR, e.g. --data cq500:DIR")
    resolved["data"] = absolute(str(resolved["data"]))
    others = tuple(report_on) or resolved.get("report_on", ())
    resolved["report_on"] = tuple(absolute(str(o)) for o in ((others,) if isinstance(others, str) else others))
    checked = validated(RunConfig, _numbers(resolved), config or "the configuration")
    full = validated(chosen.settings, checked.settings, f"settings of model {model}")
    # What cannot be built, started or has no device is refused here, before data is read or a run is written.
    built = chosen.build(checked.prep, checked.settings)
    built.check_values(checked.prep.values)
    if checked.init and names_weights(checked.init):
        built.start_partly(read_weights(checked.init))
    if checked.prep.is_volume and checked.train.augment.of_frames:
        raise MedadError(f"{model} reads volumes, which clahe and jpeg cannot change", "Set them to 0 in train.augment")
    device_for(checked.device)
    require_logger(checked.logger)
    return checked.model_copy(update={"settings": full.model_dump()})
