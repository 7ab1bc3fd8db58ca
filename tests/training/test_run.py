from __future__ import annotations

from pathlib import Path

from medad_serve.training.config import resolve
from medad_serve.training.run import create_run, same_run


def test_a_run_is_found_by_its_configuration_though_yaml_has_no_tuples(tmp_path: Path) -> None:
    for folder, count in (("train/good", 120), ("test/good", 5), ("test/crack", 5)):
        place = tmp_path / "data" / folder
        place.mkdir(parents=True)
        for number in range(count):
            (place / f"{number:03d}.png").write_bytes(b"x")
    config = resolve("draem", f"mvtec:{tmp_path / 'data'}", None, ())
    assert isinstance(config.settings["faults"]["patch_count"], tuple)
    run = create_run(config, tmp_path / "runs")
    found = same_run(config, tmp_path / "runs")
    assert found is not None
    assert found.path == run.path
    other = resolve("draem", f"mvtec:{tmp_path / 'data'}", None, ("settings.faults.patch_count=[1, 2]",))
    assert same_run(other, tmp_path / "runs") is None
