from __future__ import annotations

from pathlib import Path

import pytest

from medad_serve.ablation import ablation_path, make_plan
from medad_serve.ablation.plan import short
from medad_serve.errors import MedadError
from medad_serve.models.draem.settings import SEVERITY_INPUTS

GROUPS = """
model: ae
fixed: [train.max_epochs=1]
groups:
  width:
    title: Widths
    variants:
      narrow: [settings.hidden_dim=8]
      none: [settings.hidden_dim=0]
  carry:
    transfer: true
"""


@pytest.fixture
def mvtec(tmp_path: Path) -> tuple[str, str]:
    """Two data sets in the MVTec layout, by their names alone."""
    for domain in ("a", "b"):
        for folder, count in (("train/good", 80), ("test/good", 5), ("test/crack", 5)):
            place = tmp_path / domain / "tiles" / folder
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number:03d}.png").write_bytes(b"x")
    return f"mvtec:{tmp_path / 'a' / 'tiles'}", f"mvtec:{tmp_path / 'b' / 'tiles'}"


@pytest.fixture
def groups(tmp_path: Path) -> str:
    (tmp_path / "groups.yaml").write_text(GROUPS)
    return str(tmp_path / "groups.yaml")


def test_every_variant_of_draem_resolves_to_what_its_group_names(mvtec: tuple[str, str]) -> None:
    plan = make_plan("draem", mvtec, overrides=("train.max_epochs=2",))
    assert not [str(v) for v in plan.variants if v.config is None]
    by_group: dict[str, list[dict[str, object]]] = {}
    for variant in plan.variants:
        assert variant.config is not None
        assert variant.config.train.max_epochs == 2
        by_group.setdefault(variant.group, []).append(variant.config.model_dump(mode="json")["settings"])
    assert {s["severity_input"] for s in by_group["severity_input"]} == set(SEVERITY_INPUTS)
    assert [s["faults"]["probability"] for s in by_group["probability"]] == [0.3, 0.5, 0.8]
    weights = [tuple(s["weights"].values()) for s in by_group["weights"]]
    assert weights == [(1, 1, 0.3), (1, 1, 0.5), (1, 1, 0.7), (0.8, 1, 0.5)]
    assert {(s["faults"]["kind"], s["severity_head"]) for s in by_group["generator"]} >= {
        ("cut_paste", True),
        ("perlin", False),
    }
    forms = [[k for k, v in s["faults"]["patch_ratio_range"].items() if v] for s in by_group["patch_ratio"]]
    assert forms == [["landscape"], ["portrait"], ["square"], ["landscape", "portrait", "square"]]
    assert len({str(s["faults"]["patch_count"]) for s in by_group["patch_count"]}) == len(by_group["patch_count"])
    assert len({str(s["faults"]["patch_shapes"]) for s in by_group["patch_shape"]}) == len(by_group["patch_shape"])
    transfer = [v for v in plan.variants if v.group == "domain_transfer"]
    assert [v.name for v in transfer] == ["trained on a/tiles", "trained on b/tiles"]
    assert [v.report_on for v in transfer] == [mvtec, mvtec[::-1]]
    assert {v.report_on for v in plan.variants if v.group == "weights"} == {mvtec[:1]}


def test_one_data_set_leaves_the_transfer_out_and_says_so(mvtec: tuple[str, str]) -> None:
    plan = make_plan("draem", mvtec[:1], only=("weights", "domain_transfer"))
    assert {v.group for v in plan.variants} == {"weights"}
    assert "domain_transfer left out" in plan.notes[0]


def test_variants_win_over_the_command_which_wins_over_the_file(mvtec: tuple[str, str], groups: str) -> None:
    plan = make_plan("ae", mvtec[:1], groups=groups, overrides=("train.max_epochs=3", "settings.hidden_dim=32"))
    assert plan.base.settings["hidden_dim"] == 32
    assert plan.variants[0].config is not None
    assert plan.variants[0].config.settings["hidden_dim"] == 8
    assert plan.variants[0].config.train.max_epochs == 3


def test_a_variant_that_cannot_be_built_keeps_its_reason(mvtec: tuple[str, str], groups: str) -> None:
    plan = make_plan("ae", mvtec[:1], groups=groups)
    assert plan.variants[1].config is None
    assert "hidden_dim" in plan.variants[1].error


def test_no_variant_trains_folds_unless_asked(mvtec: tuple[str, str], groups: str, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for folder, count in (("train/good", 20), ("test/good", 3), ("test/crack", 3)):
        (few / folder).mkdir(parents=True)
        for number in range(count):
            (few / folder / f"{number}.png").write_bytes(b"x")
    plan = make_plan("ae", [f"mvtec:{few}"], groups=groups)
    assert plan.variants[0].config is not None
    calibration = plan.variants[0].config.calibration
    # 4 of the 20 are held out, and 4 healthy scores make a specificity of 1 - 1 / 5.
    assert (calibration.method, calibration.policy) == ("held_out", "specificity=0.8")
    assert any("which 4 held-out healthy patients can make" in note for note in plan.notes)
    asked = make_plan(
        "ae", [f"mvtec:{few}"], groups=groups, overrides=("calibration.method=out_of_fold",), only=("width",)
    )
    assert asked.variants[0].config is not None
    assert asked.variants[0].config.calibration.method == "out_of_fold"
    enough = make_plan("ae", mvtec[:1], groups=groups, overrides=("calibration.policy=specificity=0.8",))
    assert enough.variants[0].config is not None
    assert enough.variants[0].config.calibration.method == "auto"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("groups:", "grups:"), "groups"),
        (("settings.hidden_dim=8", "settings.hiden_dim=8"), "groups.yaml: width: narrow: there is no setting"),
        (("settings.hidden_dim=8", "hidden"), "is no key=value"),
        (("transfer: true", "transfer: false"), "must have variants, or transfer: true"),
        (("model: ae", "model: vae"), "is of model vae"),
    ],
)
def test_a_fault_of_the_file_is_one_line(mvtec: tuple[str, str], tmp_path: Path, change, says: str) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(GROUPS.replace(*change))
    with pytest.raises(MedadError, match=says) as refused:
        make_plan("ae", mvtec[:1], groups=str(path))
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_told_with_what_is(mvtec: tuple[str, str], groups: str) -> None:
    with pytest.raises(MedadError, match=r"no ablation of ae comes with the package.*--groups.*draem"):
        ablation_path("ae")
    with pytest.raises(MedadError, match="no ablation 'nowhere'"):
        ablation_path("ae", "nowhere")
    with pytest.raises(MedadError, match=r"has no group 'depth'.*width, carry"):
        make_plan("ae", mvtec[:1], groups=groups, only=("depth",))
    with pytest.raises(MedadError, match="carry takes two data sets"):
        make_plan("ae", mvtec[:1], groups=groups, only=("carry",))
    with pytest.raises(MedadError, match="no data was named"):
        make_plan("ae", (), groups=groups)


def test_names_of_data_sets_are_as_short_as_tells_them_apart() -> None:
    assert short(["mvtec:/d/a/tile", "mvtec:/d/b/tile"]) == ("a/tile", "b/tile")
    assert short(["mvtec:/d/a/tile", "folders:s3://bucket/leather"]) == ("tile", "leather")
