"""Variants of one model, each calibrated through its own file and accepted by the gate of its precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

from medad_serve.artifact import graph_of
from medad_serve.errors import MedadError
from medad_serve.export.bundle import Bundle, Scored, calibration_from, score
from medad_serve.export.fidelity import compare, fault_of, refusal
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.graphs import Graphs
from medad_serve.export.parity import check_parity
from medad_serve.export.quantize import Choice
from medad_serve.models import AnomalyModel
from medad_serve.runtime import Runtime, probe
from medad_serve.spec import FLOAT32, Calibration, Fidelity, Parity

INT8 = "int8"


@dataclass(frozen=True)
class Exported:
    """One variant: its cutoffs, and what its gate measured."""

    calibration: Calibration
    proof: Parity | Fidelity
    probe: tuple[float, ...]


class Exporter:
    """Makes the variants of a bundle: through the graphs of its model, and of the models of its folds."""

    def __init__(self, bundle: Bundle, scratch: Path, device: str = "cpu", *, gated: bool = True) -> None:
        self.bundle = bundle
        self.device = device
        self.gated = gated
        self._folders = (scratch / str(number) for number in count())
        self._graphs: dict[AnomalyModel, Graphs] = {}
        self._choices: dict[str, Choice] = {}
        """What int8 quantizes, by graph file, once a search has found it."""
        self.main = self._of(bundle.model)

    def export(self, variants: Sequence[str]) -> dict[str, Exported]:
        """Return what was made of each variant; raises MedadError where a gate refuses one.

        Variants that share an int8 graph are searched for together; what comes later takes the graph as it is.
        """
        made: dict[str, Exported] = {}
        for file in dict.fromkeys(graph_of(name) for name in variants if _is_int8(name)):
            if file not in self._choices:
                made |= self._search(file, [name for name in variants if graph_of(name) == file])
        for name in variants:
            if name not in made:
                made[name] = self._exact(name) if name.endswith(f"/{FLOAT32}") else self._accepted(name)
        return {name: made[name] for name in variants}

    def _of(self, model: AnomalyModel) -> Graphs:
        if model not in self._graphs:
            folder = next(self._folders)
            folder.mkdir()
            self._graphs[model] = Graphs(model, self.bundle.shape, self.bundle.samples, folder, self._choices)
        return self._graphs[model]

    def _open(self, variant: str, model: AnomalyModel) -> Runtime:
        device = "cpu" if variant.startswith("openvino") else self.device
        return self._of(model).open(variant, device)

    def _exact(self, variant: str) -> Exported:
        calibration = calibration_from(self.bundle, score(self.bundle, lambda model: self._open(variant, model)))
        parity = check_parity(
            variant.partition("/")[0],
            self._open(variant, self.bundle.model),
            EagerRuntime(self.bundle.model),
            self.bundle.parity_inputs,
            self.bundle.model.outputs,
            [cutoff.value for cutoff in calibration.item.cutoffs],
        )
        return Exported(calibration, parity, self._probe(variant))

    def _probe(self, variant: str) -> tuple[float, ...]:
        return probe(self._open(variant, self.bundle.model), self.bundle.shape, self.bundle.prep.values)

    @cached_property
    def _trained(self) -> tuple[Scored, Calibration]:
        scored = score(self.bundle, EagerRuntime)
        return scored, calibration_from(self.bundle, scored)

    def _reduced(self, variant: str) -> Exported:
        """Return what a variant in reduced precision reaches, be it enough or not."""
        trained, trained_calibration = self._trained
        scored = score(self.bundle, lambda model: self._open(variant, model))
        calibration = calibration_from(self.bundle, scored)
        runtime, file = variant.partition("/")[0], graph_of(variant)
        fidelity = compare(
            variant,
            self.bundle.policy,
            (trained.held_out, trained_calibration),
            (scored.held_out, calibration),
            layers=len(self.main.quantizer.layers(runtime)) if _is_int8(variant) else 0,
            float_layers=len(self._choices[file].in_float) if _is_int8(variant) else 0,
        )
        return Exported(calibration, fidelity, self._probe(variant))

    def _accepted(self, variant: str) -> Exported:
        made = self._reduced(variant)
        assert isinstance(made.proof, Fidelity)
        if self.gated and (fault := fault_of(made.proof)):
            raise refusal(variant, fault)
        return made

    def _search(self, file: str, variants: list[str]) -> dict[str, Exported]:
        """Quantize ever less until every variant of an int8 graph is accepted."""
        refused = MedadError("this model has no layer that can be quantized", "Export it in another precision")
        for choice in self.main.quantizer.choices(variants[0].partition("/")[0]):
            self._choices[file] = choice
            for graphs in self._graphs.values():
                graphs.make_anew(file)
            try:
                return {name: self._accepted(name) for name in variants}
            except MedadError as error:
                refused = error
        self._choices.pop(file, None)
        raise refused


def _is_int8(variant: str) -> bool:
    return variant.partition("/")[2].startswith(INT8)
