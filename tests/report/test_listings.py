from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medad_serve.report import Maps, decision_listings, levels, study_listings, write_report
from medad_serve.report.listings import FIGURES


def _cell(value: float | None) -> dict[str, float | None]:
    known = value is not None
    return {"value": value, "low": value - 0.1 if known else None, "high": value + 0.1 if known else None}


def _level(normal: int, abnormal: int, patients: int, classes: tuple[str, ...] = ()) -> dict[str, Any]:
    own = {"normal": normal, "abnormal": abnormal, "patients": patients, **{n: _cell(0.5) for n in FIGURES}}
    return {**own, "classes": dict.fromkeys(classes, own)}


def _metrics(items: dict[str, Any], patients: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        "unit": "slice",
        "slice": items,
        "patient": patients,
        "scores": {"severity": {"auroc": _cell(0.7)}},
        "baselines": {},
        **sections,
    }


def test_patients_are_a_level_where_one_has_several_items() -> None:
    several = _metrics(_level(6, 4, 5, ("crack",)), _level(3, 2, 5))
    assert levels(several) == ("slice", "patient")
    assert [row[:3] for row in decision_listings(several)[0].rows] == [
        ["slice", "all abnormal", "6 / 4"],
        ["slice", "crack", "6 / 4"],
        ["patient", "all abnormal", "3 / 2"],
    ]
    assert levels(_metrics(_level(6, 4, 10), _level(6, 4, 10))) == ("slice",)


def test_what_was_not_found_has_no_table() -> None:
    assert study_listings(_metrics(_level(1, 1, 2), _level(1, 1, 2))) == []


def test_every_section_becomes_a_table() -> None:
    pixel = {"images": 9, "regions": 4, "left_out": 2, "auroc": _cell(0.8), "aupro": _cell(None), "fpr_limit": 0.3}
    sections = {
        "pixel": {**pixel, "classes": {"crack": pixel, "hole": pixel}},
        "severity": {"true": {"items": 3, "mae": _cell(0.4), "spearman": _cell(0.9)}},
        "synthetic": {
            "normal": 5, "faulted": 7, "auroc": _cell(0.9), "pixel_auroc": _cell(0.8), "aupro": _cell(0.7),
            "severity": {"mae": _cell(1.5), "spearman": _cell(0.6)},
        },
        "probability": {"probability": {"ece": _cell(0.2), "brier": _cell(0.3)}},
    }  # fmt: skip
    found = {t.title.split(" ")[0]: t for t in study_listings(_metrics(_level(1, 1, 2), _level(1, 1, 2), **sections))}
    assert list(found) == ["Heatmaps", "Severity", "Synthetic", "Calibration"]
    assert found["Heatmaps"].rows[0] == ["all", "4", "0.800 [0.700, 0.900]", "-"]
    assert [row[0] for row in found["Heatmaps"].rows] == ["all", "crack", "hole"]
    assert "9 images, 2 " in found["Heatmaps"].title
    assert found["Severity"].rows == [["severity given", "3", "0.400 [0.300, 0.500]", "0.900 [0.800, 1.000]"]]
    assert found["Synthetic"].rows[-1] == ["severity, Spearman", "0.600 [0.500, 0.700]"]
    assert "7 on 5 healthy" in found["Synthetic"].title
    assert found["Calibration"].rows == [["probability", "0.200 [0.100, 0.300]", "0.300 [0.200, 0.400]"]]
    for listing in found.values():
        assert all(len(row) == len(listing.head) for row in listing.rows)


def test_maps_stand_in_the_page_at_their_own_size(tmp_path: Path) -> None:
    image = bytes(cv2.imencode(".jpg", np.full((20, 30), 99, np.uint8))[1])
    maps = Maps("Maps", ["image", "<heat>"], [("one\nscore 1 < 2", [image, image])])
    write_report(tmp_path / "r.html", title="t", facts={}, plots=[], maps=[maps])
    text = (tmp_path / "r.html").read_text()
    shown = [base64.b64decode(s) for s in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)]
    assert shown == [image, image]
    assert "&lt;heat&gt;" in text
    assert "score 1 &lt; 2" in text
