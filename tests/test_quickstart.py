from __future__ import annotations

import json
from pathlib import Path

import pytest

from medad_serve.quickstart import Plan, quickstart

SMALL = Plan(
    healthy=70,
    abnormal=12,
    slices=1,
    overrides=("train.max_epochs=2", "settings.hidden_dim=64", "calibration.policy=specificity=0.8"),
)


@pytest.mark.server
def test_every_figure_of_the_summary_is_measured(tmp_path: Path) -> None:
    said: list[str] = []
    summary = quickstart(tmp_path, plan=SMALL, say=said.append)
    home = tmp_path / "quickstart"
    assert json.loads((home / "summary.json").read_text()) == summary
    required = ("auroc", "specificity", "sensitivity", "parity_max_abs_diff", "requests", "wrong_decisions", "seconds")
    assert set(required) <= set(summary)
    metrics = json.loads(next(home.glob("2*/metrics.json")).read_text())
    assert summary["auroc"] == metrics["slice"]["auroc"]["value"]
    # What came over HTTP agrees with what was measured in process on the same patients.
    assert summary["sensitivity"] == pytest.approx(metrics["slice"]["sensitivity"]["value"])
    assert summary["specificity"] == pytest.approx(metrics["slice"]["specificity"]["value"])
    healthy, abnormal = metrics["slice"]["normal"], metrics["slice"]["abnormal"]
    assert summary["requests"] == healthy + abnormal
    wrong = healthy * (1 - summary["specificity"]) + abnormal * (1 - summary["sensitivity"])
    assert summary["wrong_decisions"] == pytest.approx(wrong)
    assert 0 < summary["parity_max_abs_diff"] < 1e-3
    assert len(list((home / "overlays").glob("*.png"))) == summary["requests"]
    report = (home / "report.html").read_text()
    assert report.count("<figure>") == 12
    assert "data:image/png;base64," in report
    # A second run replaces the first.
    assert quickstart(tmp_path, plan=SMALL)["auroc"] == pytest.approx(summary["auroc"])
