from pathlib import Path
from typing import Any

import pytest

from fedpers.errors import ConfigError
from simulations.experiments.compare import Cell, cells, compare, paired_interval, table

ROOT = Path(__file__).resolve().parents[3]


def test_cells_are_every_combination_in_order() -> None:
    plan = cells(["local", "ditto:mu=0.1"], 2, ["data.partition.alpha=1,100"], first_seed=5)
    assert len(plan) == 8
    assert plan[0] == Cell(
        "local",
        "data.partition.alpha=1",
        5,
        ("strategy.name=local", "data.partition.alpha=1", "seed=5"),
    )
    assert plan[3].overrides == (
        "strategy.name=ditto",
        "strategy.params.mu=0.1",
        "data.partition.alpha=1",
        "seed=6",
    )
    assert len({cell.name for cell in plan}) == 8
    assert "/" not in cells(["a:B/c"], 1, [])[0].name


@pytest.mark.parametrize("item", ["rounds", "rounds=", "=3"])
def test_a_setting_without_a_value_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        cells(["local"], 1, [item])


def test_paired_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.303: 4.303 / sqrt(3) = 2.484.
    centre, width = paired_interval([1.0, 2.0, 3.0])
    assert centre == 2.0
    assert width == pytest.approx(2.484, abs=1e-3)
    assert paired_interval([1.5])[0] == 1.5


def report(mean: float) -> dict[str, Any]:
    summary = {"weighted": mean, "mean": mean, "worst_decile": mean}
    return {
        "accuracy": {"personal": summary, "global": None, "gated": None},
        "breakage_rate": None,
        "harmed_share": None,
        "gated": {"harmed_share": None},
        "out_of_client": {"personal": 0.5, "global": None},
        "steps": 240.0,
        "by_client": {"a": mean - 0.1, "b": mean + 0.1},
    }


def test_the_table_by_hand() -> None:
    plan = cells(["local", "ditto"], 3, [])
    means = {"local": [0.80, 0.82, 0.84], "ditto": [0.81, 0.84, 0.87]}
    reports = {cell: report(means[cell.method][cell.seed]) for cell in plan}
    lines = table(reports, against="local").splitlines()
    # 80, 82, 84: mean 82, sd 2. Differences 1, 2, 3: +2.0 ± 2.5.
    assert lines[2].startswith("| local | 82.0 ± 2.0 | 82.0 ± 2.0 |")
    assert lines[3].endswith("| 50.0 ± 0.0 | 240 ± 0 | +2.0 ± 2.5 | +2.0 ± 0.0 |")
    unscored = report(0.5) | {"accuracy": dict.fromkeys(("personal", "global", "gated"))}
    row = table({plan[0]: unscored}, against="local").splitlines()[2]
    assert row.startswith("| local | - | - | - |")
    assert row.endswith("| 50.0 | 240 |  | +0.0 ± 0.0 |")


def test_the_table_of_a_regression_by_hand() -> None:
    plan, means = cells(["local", "ditto"], 3, []), {"local": [41, 43, 45], "ditto": [40, 41, 42]}
    reports = {}
    for cell in plan:
        value = means[cell.method][cell.seed]
        summary = {"weighted": value, "mean": value, "worst_decile": 2 * value}
        reports[cell] = report(0.5) | {
            "task": {"name": "regression"},
            "rmse": {"personal": summary},
            "r2_pooled": {"personal": 0.25},
            "harmed_share": 0.5,
        }
    head, _, local, ditto = table(reports, against="local").splitlines()
    assert "| harmed | harmed, gated | MAE | R² | outside | steps | mean, less local |" in head
    assert head.endswith("| the same over clients |")
    assert local.startswith("| local | 43.0 ± 2.0 | 43.0 ± 2.0 | 86.0 ± 4.0 |")
    # Differences -1, -2, -3: less is better, and the sign is that of the difference.
    assert ditto.endswith("| 0.250 ± 0.000 | 0.500 ± 0.000 | 240 ± 0 | -2.0 ± 2.5 | +0.0 ± 0.0 |")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    plan = cells(["local"], 1, [])
    (tmp_path / plan[0].name).mkdir()
    (tmp_path / plan[0].name / "report.json").write_text("{}")
    first = compare(ROOT / "configs/digits.yaml", plan, tmp_path)
    assert next(first)[0] == plan[0]
    line = rf"^--out: got '{tmp_path}', takes a folder that no other comparison is at work in; wait"
    with pytest.raises(ConfigError, match=line):
        list(compare(ROOT / "configs/digits.yaml", plan, tmp_path))
    assert list(first) == []
    assert [cell for cell, _ in compare(ROOT / "configs/digits.yaml", plan, tmp_path)] == plan


@pytest.mark.slow
def test_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    config = ROOT / "configs/digits.yaml"
    short = ["rounds=1", "data.clients=4", "model.pretrain.task=none", "model.standardise=false"]
    plan = cells(["local", "fedavg"], 1, short)
    first = dict(compare(config, plan, tmp_path))
    assert set(first) == set(plan)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/report.json")}
    assert len(stamps) == 2
    victim = next(path for path in stamps if "fedavg" in str(path))
    victim.unlink()  # as if that run had been interrupted
    again = dict(compare(config, plan, tmp_path))
    kept = next(path for path in stamps if path != victim)
    assert kept.stat().st_mtime_ns == stamps[kept]
    # A run that failed may have left a report.
    victim.with_name("error.txt").write_text("round 1: no client was evaluated\n")
    stamp = victim.stat().st_mtime_ns
    again = dict(compare(config, plan, tmp_path))
    assert victim.stat().st_mtime_ns > stamp and not victim.with_name("error.txt").exists()
    accuracy = {cell: result["accuracy"] for cell, result in again.items() if result}
    assert accuracy == {cell: result["accuracy"] for cell, result in first.items() if result}
