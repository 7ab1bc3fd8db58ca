from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from medad_serve.calibration import HeldOut
from medad_serve.report import (
    Listing,
    Row,
    Shown,
    constants,
    plot_history,
    plot_rows,
    plot_scores,
    scales,
    three_planes,
    write_report,
)
from medad_serve.report.curves import _columns, _panels


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(path))


def _shows(image: np.ndarray, color: tuple[float, float, float], atol: float = 0.02) -> bool:
    return bool(np.isclose(image[..., :3], color, atol=atol).all(axis=-1).any())


def test_planes_go_through_the_maximum_of_the_heatmap() -> None:
    rng = np.random.default_rng(0)
    heat = rng.random((6, 7, 8)).astype(np.float32)
    heat[4, 2, 5] = 9.0
    scan = rng.random((6, 7, 8)).astype(np.float32)
    rows = three_planes("found", {"input": scan, "heatmap": heat})
    assert [r.label for r in rows] == ["found\nslice 4", "row 2", "column 5"]
    np.testing.assert_array_equal(rows[0].panels["input"], scan[4])
    np.testing.assert_array_equal(rows[1].panels["input"], np.flipud(scan[:, 2, :]))
    np.testing.assert_array_equal(rows[2].panels["input"], np.flipud(scan[:, :, 5]))
    for row in rows:
        assert row.mark is not None
        assert row.panels["heatmap"][row.mark] == 9.0


def test_a_flat_heatmap_is_shown_in_the_middle() -> None:
    rows = three_planes("nothing", {"heatmap": np.zeros((4, 6, 8), np.float32)})
    assert [r.label.split("\n")[-1] for r in rows] == ["slice 2", "row 3", "column 4"]


def test_maps_share_one_scale_and_images_that_of_the_input() -> None:
    rows = [
        Row("a", {"input": np.full((4, 4), 0.5), "residual": np.zeros((4, 4)), "signed": np.full((4, 4), -2.0)}),
        Row("b", {"input": np.full((4, 4), 0.1), "residual": np.full((4, 4), 3.0), "signed": np.full((4, 4), 2.0)}),
    ]
    assert scales(rows, (-1.0, 1.0)) == {"input": (-1.0, 1.0), "residual": (0.0, 3.0), "signed": (-2.0, 2.0)}


def test_a_map_of_nothing_still_has_a_scale() -> None:
    low, high = scales([Row("a", {"heatmap": np.zeros((4, 4))})], (0, 1))["heatmap"]
    assert low < high


def test_a_grid_shows_its_panels_in_their_colours(tmp_path: Path) -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[2, 3] = 1.0
    color = np.tile(np.array([0.2, 0.6, 0.4], np.float32), (8, 8, 1))
    rows = [Row("one", {"input": color, "heatmap": heat}, wrong=True), Row("two", {"input": color, "heatmap": heat})]
    plot_rows(rows, tmp_path / "grid.png", "title", {"input": (0, 1), "heatmap": (0, 1)})
    image = _pixels(tmp_path / "grid.png")
    assert _shows(image, (0.2, 0.6, 0.4))
    inferno = matplotlib.colormaps["inferno"]
    assert _shows(image, inferno(1.0)[:3])
    assert _shows(image, inferno(0.0)[:3])
    assert _shows(image, (0.839, 0.153, 0.157))  # tab:red, the label of a wrong decision


LOG = """epoch,train/loss,train/recon_loss,train/perplexity,val/auroc,val/patient_auroc,val/loss
0,100,100,5,0.5,0.5,90
1,1,1,7,0.6,0.6,
2,0.1,0.1,9,nan,nan,0.2
"""


def test_curves_are_grouped_by_what_they_measure_each_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(LOG)
    columns, steps = _columns(tmp_path / "metrics.csv")
    panels = _panels(columns)
    assert steps == [0, 1, 2]
    assert {title: sorted(curves) for title, curves in panels.items()} == {
        "loss": ["train/loss", "val/loss"],
        "perplexity": ["train/perplexity"],
        "AUROC and AUPRC": ["val/auroc"],
    }
    np.testing.assert_array_equal(panels["loss"]["val/loss"], [90, np.nan, 0.2])
    assert next(iter(panels)) == "loss"
    assert plot_history(tmp_path / "metrics.csv", tmp_path / "h.png")
    assert _pixels(tmp_path / "h.png").ndim == 3


def test_what_follows_training_has_curves_and_constants(tmp_path: Path) -> None:
    log = tmp_path / "finish.csv"
    log.write_text(
        "prior_epoch,prior_train_nll,prior_held_out_nll,score_mean\n1,3.0,3.1,\n2,2.0,2.2,\n,,,0.25\n", newline="\n"
    )
    columns, steps = _columns(log)
    assert steps[:2] == [1, 2]
    assert set(_panels(columns)) == {"prior nll"}
    assert set(_panels(columns)["prior nll"]) == {"prior_train_nll", "prior_held_out_nll"}
    assert constants(log) == {"score_mean": 0.25}
    assert plot_history(log, tmp_path / "f.png")


def test_a_log_of_nothing_draws_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("epoch,train/loss\n")
    assert not plot_history(tmp_path / "empty.csv", tmp_path / "e.png")
    assert not (tmp_path / "e.png").exists()


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1], [0] * 6, [1] * 6])
def test_score_plots_do_without_a_class(labels: list[int], tmp_path: Path) -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.2, 0.4, 0.5])
    kinds = {"CNV": np.array([0, 0, 0, 1, 1, 0], bool), "DME": np.array([0, 0, 0, 0, 0, 1], bool)}
    classes = kinds if 0 < sum(labels) < 6 else {}
    data = HeldOut(scores, np.array(labels), tuple("abcdef"))
    plot_scores(data, 0.35, tmp_path / "s.png", unit="volume", classes=classes)
    assert _pixels(tmp_path / "s.png").shape[1] > 1000


def test_a_report_needs_no_other_file_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    plot_scores(HeldOut(np.arange(4.0), np.array([0, 0, 1, 1]), tuple("abcd")), None, tmp_path / "s.png")
    shown = [Shown("a", "<b>CNV</b>", "normal", 0.5, 0.1, False, tmp_path / "s.png")]
    shown.append(Shown("b", "normal", "normal", 0.5, 0.1, True, None))
    write_report(
        tmp_path / "report.html",
        title="a & b",
        facts={"model": "ae"},
        plots=[("Scores", tmp_path / "s.png"), ("Scores", tmp_path / "s.png")],
        shown=shown,
        tables=[Listing("Found", ("what", "value"), [("mean", "<1>")])],
    )
    text = (tmp_path / "report.html").read_text()
    assert "<h2>Scores</h2>" in text
    assert text.count("<h2>Scores</h2>") == 1
    assert "<b>" not in text
    assert "&lt;1&gt;" in text
    assert "a &amp; b" in text
    assert text.count("<figure>") == 1
    assert not re.search(r'(src|href)="(?!data:)', text)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(images) == 3
    for image in images:
        assert matplotlib.image.imread(io.BytesIO(base64.b64decode(image))).ndim == 3
