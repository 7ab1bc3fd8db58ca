from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medad_serve import quickstart as quickstart_module
from medad_serve.data import Sample, read_table
from medad_serve.quickstart import Plan, Sent, agreement, quickstart

SMALL = Plan(
    healthy=70,
    abnormal=12,
    slices=1,
    overrides=("train.max_epochs=2", "settings.hidden_dim=64", "calibration.policy=specificity=0.8"),
)


def _sent(label: int, true: float | None = None, **answer: float) -> Sent:
    return Sent(Sample(Path("a.png"), "p", label, severity=true), {"anomalous": bool(label), **answer})


def test_agreement_tells_medians_brier_score_and_rank_correlation() -> None:
    sent = [
        _sent(0, probability=0.1),
        _sent(0, probability=0.3),
        _sent(0, probability=0.6),
        _sent(1, probability=0.5),
        _sent(1, probability=0.9),
    ]
    found = agreement(sent)
    assert found["median_probability_healthy"] == 0.3
    assert found["median_probability_abnormal"] == pytest.approx(0.7)
    assert found["probability_brier"] == pytest.approx((0.01 + 0.09 + 0.36 + 0.25 + 0.01) / 5)
    assert not any("severity" in name for name in found)


def test_agreement_of_severities_is_over_items_whose_severity_is_known() -> None:
    sent = [_sent(1, t, severity=s) for t, s in ((1.0, 0.2), (2.0, 0.9), (5.0, 0.4), (9.0, 3.0))]
    found = agreement([*sent, _sent(0, severity=0.3), _sent(1, severity=0.0)])
    assert found["median_severity_healthy"] == 0.3
    assert found["median_severity_abnormal"] == pytest.approx(0.4)
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    assert found["severity_spearman"] == pytest.approx(0.8)
    assert agreement([_sent(1, 1.0, severity=0.5)] * 3)["severity_spearman"] is None


def test_models_that_say_the_score_alone_have_no_agreement() -> None:
    assert agreement([_sent(0), _sent(1)]) == {}


@pytest.mark.server
def test_severities_over_http_are_those_of_the_evaluation(draem_quickstart: tuple[Path, dict[str, Any]]) -> None:
    home, summary = draem_quickstart
    metrics = json.loads(next(home.glob("2*/metrics.json")).read_text())
    assert summary["severity_spearman"] == pytest.approx(metrics["severity"]["true"]["spearman"]["value"], abs=1e-3)
    assert 0 < summary["median_severity_abnormal"] < 10
    assert 0 < summary["median_severity_healthy"] < 10
    # Every abnormal map tests, as do a fifth of the healthy ones.
    assert summary["requests"] == metrics["slice"]["normal"] + metrics["slice"]["abnormal"] == 10 + 8
    assert 0 < summary["parity_max_abs_diff"] < 1e-3
    report = (home / "report.html").read_text()
    assert report.count("<figure>") == 12
    assert report.count("fault, severity ") == 6
    graded = [s.severity for s in read_table(f"mvtec:{home / 'data'}").samples if s.severity is not None]
    for end in (min(graded), max(graded)):
        assert f"fault, severity {end:g} &rarr;" in report


@pytest.mark.server
def test_every_figure_of_the_summary_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "quickstart"
    before = _left_by_one_that_broke_off(tmp_path, monkeypatch)
    said: list[str] = []
    summary = quickstart(tmp_path, plan=SMALL, say=said.append)
    assert json.loads((home / "summary.json").read_text()) == summary
    required = ("auroc", "specificity", "sensitivity", "parity_max_abs_diff", "requests", "wrong_decisions", "seconds")
    assert set(required) <= set(summary)
    metrics = json.loads(max(home.glob("2*/metrics.json")).read_text())
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
    # It has replaced what the first left, and come to the same.
    assert summary["auroc"] == pytest.approx(before)


def _left_by_one_that_broke_off(runs: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Break a quickstart off before it serves, over the overlays of one before; return its AUROC."""

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    home = runs / "quickstart"
    (home / "overlays").mkdir(parents=True)
    (home / "overlays" / "of_a_run_before.png").touch()
    with monkeypatch.context() as patch:
        patch.setattr(quickstart_module, "_ask", stop)
        with pytest.raises(Stopped):
            quickstart(runs, plan=SMALL)
    (file,) = home.glob("2*/metrics.json")
    return float(json.loads(file.read_text())["slice"]["auroc"]["value"])
