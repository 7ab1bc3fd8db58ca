from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes

from medad_serve.report import Confusion, Scatter, Sureness, plot_confusion, plot_reliability, plot_severity


def _shows(path: Path, color: tuple[float, ...]) -> bool:
    image = np.asarray(matplotlib.image.imread(path))
    return bool(np.isclose(image[..., :3], color[:3], atol=0.02).all(axis=-1).any())


def test_a_matrix_tells_counts_and_shares_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    draw = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **style: (said.append(s), draw(self, x, y, s, **style))[1])
    called = {"normal": (9, 1), "abnormal": (1, 3), "crack": (0, 0)}
    plot_confusion([Confusion("slices", called)], tmp_path / "c.png")
    assert said == ["9  (90%)", "1  (10%)", "1  (25%)", "3  (75%)", "0  (0%)", "0  (0%)"]
    blues = matplotlib.colormaps["Blues"]
    for share in (0.9, 0.1, 0.25, 0.75):
        assert _shows(tmp_path / "c.png", blues(share))


def test_two_levels_stand_beside_each_other(tmp_path: Path) -> None:
    one = Confusion("slices", {"normal": (1, 0)})
    plot_confusion([one], tmp_path / "one.png")
    plot_confusion([one, Confusion("patients", {"normal": (1, 0)})], tmp_path / "two.png")
    widths = [matplotlib.image.imread(tmp_path / f"{name}.png").shape[1] for name in ("one", "two")]
    assert widths[1] == 2 * widths[0]


def test_each_output_has_its_reliability_in_its_own_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    outputs = [Sureness("score", rng.random(200), 0.2), Sureness("probability", rng.random(200), 0.1)]
    plot_reliability(outputs, labels, tmp_path / "r.png")
    for color in ((0.0, 0.0, 0.0), matplotlib.colors.to_rgb("tab:blue")):
        assert _shows(tmp_path / "r.png", color)


def test_severities_are_points_of_their_class(tmp_path: Path) -> None:
    x = np.array([1.0, 2.0, 3.0])
    graded = Scatter("graded", "severity given", x, x + 0.2, ("crack", "hole", "hole"), True)
    sizes = Scatter("defects", "share", x, x, ("", "", ""), False)
    plot_severity([graded, sizes], tmp_path / "s.png")
    image = np.asarray(matplotlib.image.imread(tmp_path / "s.png"))
    assert image.shape[1] == 900  # two panels of 3 inches at 150 dots
    assert image.std() > 0


def test_only_what_is_no_severity_stands_on_a_logarithmic_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled: list[str] = []
    monkeypatch.setattr(matplotlib.axes.Axes, "set_xscale", lambda _, scale: scaled.append(scale))
    x = np.array([0.05, 2.0, 9.0])
    plot_severity([Scatter("graded", "severity given", x, x, ("", "", ""), True)], tmp_path / "s.png")
    assert scaled == []  # the diagonal, which starts at 0, would lie flat
    plot_severity([Scatter("defects", "share", x, x, ("", "", ""), False)], tmp_path / "s.png")
    assert scaled == ["log"]
