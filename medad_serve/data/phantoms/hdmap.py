"""A folder of health-data maps laid out as MVTec AD: healthy gearboxes, and faults of known place and severity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medad_serve.data.phantoms.folder import TEST_SHARE, Row, refuse_impossible, write_csv, write_patients
from medad_serve.data.phantoms.hdmap_faults import KINDS, SEVERITY_MAX, Fault, Kind, faulty
from medad_serve.data.phantoms.hdmap_machine import Bytes, Gearbox, Machine, Run, acquire, levels
from medad_serve.files import whole_directory

_MASKS = Path("ground_truth", "fault")


@dataclass(frozen=True)
class _Dealt:
    """What a machine gets."""

    folder: Path
    kind: Kind | None = None
    severity: float = 0.0


def write_hdmap(out: Path, *, healthy: int, abnormal: int, slices: int = 1, seed: int = 0) -> None:
    """Write ``healthy`` + ``abnormal`` machines of ``slices`` maps (runs) each into ``out``, whole or not at all.

    ``OUT/{train/good,test/good,test/fault}/<machine>-<n>.png``, 8 bit, 256 x 256, and for every fault
    ``OUT/ground_truth/fault/<machine>-<n>_mask.png`` (255 where it changed the map). ``OUT/severity.csv``
    (path, severity) grades the faults evenly over 0..10, ``OUT/faults.csv`` tells their kinds. Every faulty machine
    tests. Maps of one machine share a patient with ``data_options.patient``, the digits before the hyphen. All
    machines of a folder are of one design; another seed draws another one, and so another domain. The same seed
    writes the same bytes. Raises MedadError when ``out`` holds anything or a count is impossible.
    """
    refuse_impossible(out, healthy=healthy, abnormal=abnormal, slices=slices)
    order = np.random.default_rng([seed, 0])
    design = Gearbox.draw(np.random.default_rng([seed, 2]))
    dealt = _deal(order, healthy, abnormal)
    digits = max(3, len(str(len(dealt) - 1)))
    with whole_directory(out) as folder:
        for part in {each.folder for each in dealt} | ({_MASKS} if abnormal else set()):
            (folder / part).mkdir(parents=True)

        def write(machine: int) -> list[Row]:
            rng = np.random.default_rng([seed, 1, machine])
            return _write_machine(rng, folder, f"{machine:0{digits}d}", design, dealt[machine], slices)

        rows = write_patients(write, len(dealt))
        for name, column in (("severity.csv", "severity"), ("faults.csv", "kind")):
            write_csv(folder / name, ["path", column], [{"path": r["path"], column: r[column]} for r in rows])


def _deal(order: np.random.Generator, healthy: int, abnormal: int) -> list[_Dealt]:
    """Return what each machine gets, shuffled; of two or more healthy ones at least one tests."""
    tests = max(round(TEST_SHARE * healthy), int(healthy > 1))
    dealt = [_Dealt(Path("test" if machine < tests else "train", "good")) for machine in range(healthy)]
    # Each kind is graded evenly over the whole range.
    for number, kind in enumerate(KINDS):
        count = len(range(number, abnormal, len(KINDS)))
        grades = (np.arange(count) + order.uniform(size=count)) / max(count, 1) * SEVERITY_MAX
        dealt += [_Dealt(Path("test", "fault"), kind, float(grade)) for grade in grades]
    return [dealt[place] for place in order.permutation(len(dealt))]


def _write_machine(
    rng: np.random.Generator, folder: Path, name: str, design: Gearbox, dealt: _Dealt, slices: int
) -> list[Row]:
    """Write the maps of one machine; return a row for each fault."""
    machine = Machine.draw(rng, design)
    fault = Fault.draw(rng, dealt.kind, dealt.severity) if dealt.kind else None
    rows: list[Row] = []
    for index in range(slices):
        run = Run.draw(rng, design)
        path = dealt.folder / f"{name}-{index + 1}.png"
        if fault is None:
            level = levels(design, machine, run)
        else:
            level, mask = faulty(design, machine, run, fault)
            _save(folder / _MASKS / f"{path.stem}_mask.png", mask.astype(np.uint8) * np.uint8(255))
            rows.append({"path": path.as_posix(), "severity": f"{fault.severity:.2f}", "kind": fault.kind})
        _save(folder / path, acquire(rng, level))
    return rows


def _save(path: Path, image: Bytes) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
