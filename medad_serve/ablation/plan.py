"""What an ablation was asked for: groups of variants, read from a file beside the recipes and resolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from medad_serve.calibration import normals_needed
from medad_serve.data import Given, read_table, split_patients
from medad_serve.errors import MedadError
from medad_serve.models import family
from medad_serve.spec import Frozen, read_yaml, validated
from medad_serve.training.config import ABLATION, RunConfig, absolute, parse_overrides, resolve

LOWEST = "specificity=0.5"
"""A policy that one healthy patient can make."""


class _Group(Frozen):
    title: str = ""
    variants: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Settings ``key=value`` of each variant."""
    transfer: bool = False
    """In place of variants: train on each data set, report on every one."""

    @model_validator(mode="after")
    def _has_variants(self) -> Self:
        if self.transfer == bool(self.variants):
            raise ValueError("must have variants, or transfer: true")
        return self


class _File(Frozen):
    model: str
    fixed: tuple[str, ...] = ()
    """Settings of every variant."""
    groups: dict[str, _Group] = Field(min_length=1)


@dataclass(frozen=True)
class Variant:
    """One training of a group, and the data sets that it is measured on."""

    group: str
    name: str
    overrides: tuple[str, ...]
    data: str
    report_on: tuple[str, ...]
    config: RunConfig | None
    error: str = ""
    """Why it cannot be trained, where it cannot."""

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Plan:
    """What an ablation was asked for, resolved."""

    model: str
    titles: dict[str, str]
    """Of each group."""
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]
    """What was decided for the user."""
    base: RunConfig
    """What the variants change."""


def ablation_path(model: str, name: str | None = None) -> Path:
    """Return the file of an ablation: a path, one that comes with the package, or by default the model's own."""
    if name and Path(name).is_file():
        return Path(name)
    recipes = Path(str(files("medad_serve.training"))) / "recipes"
    path = recipes / f"{name or model + ABLATION}.yaml"
    if path.is_file() and path.stem.endswith(ABLATION):
        return path
    known = ", ".join(sorted(p.stem.removesuffix(ABLATION) for p in recipes.glob(f"*{ABLATION}.yaml")))
    asked = f"there is no ablation {name!r}" if name else f"no ablation of {model} comes with the package"
    raise MedadError(asked, f"Write one and name it with --groups; there is one of: {known}")


def make_plan(
    model: str,
    data: Sequence[str],
    *,
    groups: str | None = None,
    config: str | None = None,
    overrides: tuple[str, ...] = (),
    only: Sequence[str] = (),
) -> Plan:
    """Resolve an ablation of ``model`` on the first of ``data``; groups of transfer take all of them.

    Raises MedadError for unknown settings and groups. A variant that cannot be built stays, with its reason.
    """
    path = ablation_path(model, groups)
    file = validated(_File, read_yaml(path), str(path))
    if file.model != model:
        raise MedadError(f"{path} is of model {file.model}", f"It says nothing of {model}")
    if unknown := [name for name in only if name not in file.groups]:
        raise MedadError(f"{path} has no group {unknown[0]!r}", f"It has: {', '.join(file.groups)}")
    if not data:
        raise MedadError("no data was named", "Give --data LAYOUT:DIR, several for a transfer between domains")
    sources = tuple(dict.fromkeys(absolute(source) for source in data))
    chosen = {name: group for name, group in file.groups.items() if not only or name in only}
    notes = []
    if len(sources) < 2:
        left = [name for name, group in chosen.items() if group.transfer]
        chosen = {name: group for name, group in chosen.items() if not group.transfer}
        if left and not chosen:
            raise MedadError(f"{left[0]} takes two data sets or more", "Repeat --data")
        notes += [f"{name} left out: it takes two data sets, given by repeating --data" for name in left]
    base = (*file.fixed, *overrides)
    for name, group in chosen.items():
        for text, pairs in group.variants.items():
            _known(f"{path}: {name}: {text}", pairs, model)
    cutoffs: dict[str, tuple[str, ...]] = {}
    variants = []
    for name, group in chosen.items():
        asked = {text: (pairs, sources[0]) for text, pairs in group.variants.items()}
        if group.transfer:
            asked = {f"trained on {named}": ((), source) for named, source in zip(short(sources), sources, strict=True)}
        for text, (pairs, source) in asked.items():
            if source not in cutoffs:
                cutoffs[source] = _cutoffs(model, source, config, base, notes)
            every = (*base, *cutoffs[source], *pairs)
            reported = (source, *(s for s in sources if s != source)) if group.transfer else (source,)
            variants.append(_variant(model, name, text, pairs, every, source, reported, config))
    titles = {name: group.title or name.replace("_", " ") for name, group in chosen.items()}
    return Plan(model, titles, tuple(variants), tuple(notes), resolve(model, sources[0], config, base))


def short(sources: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest ends of paths that tell data sets apart."""
    parts = [Path(source.partition(":")[2]).parts for source in sources]
    for count in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(p[-count:]) for p in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(sources)


def _known(where: str, pairs: tuple[str, ...], model: str) -> None:
    try:
        parse_overrides(pairs, model)
    except MedadError as error:
        raise MedadError(f"{where}: {error.message}", error.hint) from None


def _variant(
    model: str,
    group: str,
    name: str,
    pairs: tuple[str, ...],
    every: tuple[str, ...],
    source: str,
    reported: tuple[str, ...],
    config: str | None,
) -> Variant:
    try:
        resolved, error = resolve(model, source, config, every), ""
    except MedadError as refused:
        resolved, error = None, str(refused)
    return Variant(group, name, pairs, source, reported, resolved, error)


def _cutoffs(model: str, source: str, config: str | None, base: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    """Return what keeps a variant one training: models of folds would only serve cutoffs for export.

    Where the data hold too few healthy patients for the policy, cutoffs are at the highest specificity that those
    held out can make.
    """
    resolved = resolve(model, source, config, base)
    if resolved.calibration.method != "auto":
        return ()
    table = read_table(resolved.data, resolved.data_options)
    labels = table.patients()
    drawn = split_patients(
        labels,
        resolved.split,
        method="held_out",
        policy=LOWEST,
        given=Given(table.given_roles(), table.given_folds()),
        supervised=family(model).build(resolved.prep, resolved.settings).supervised,
    )
    healthy = sum(labels[p] == 0 for p in drawn.patients("calibration"))
    if healthy >= normals_needed(resolved.calibration.policy):
        return ()
    highest = math.floor(100 * healthy / (healthy + 1)) / 100  # n healthy make 1 - 1 / (n + 1) at most
    notes.append(f"{source}: cutoffs at specificity {highest}, which {healthy} held-out healthy patients can make")
    return ("calibration.method=held_out", f"calibration.policy=specificity={highest}")
