import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpers.config import Config, load_config
from fedpers.errors import ConfigError
from fedpers.evaluation.results import ClientResult
from fedpers.evaluation.run_folder import RunFolder, new_run_id
from fedpers.tasks.counts import Counts

ROOT = Path(__file__).parents[3]
RESULT = ClientResult("a", 9, Counts(0, {}, {}, {}), Counts(3, {"local": 2}, {}, {}))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "runs" / "one", load_config(None))
    yield folder
    folder.close()


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_config_is_the_resolved_one(tmp_path: Path) -> None:
    config = load_config(None, ["seed=7", "strategy.name=fedavg"])
    RunFolder(tmp_path / "new", config).close()
    assert load_config(tmp_path / "new" / "config.yaml") == config


def test_lines_are_readable_while_the_run_goes_on(run: RunFolder) -> None:
    for round in (1, 2):
        run.log_round({"round": round, "loss": float("nan"), "seconds": {"train": [0.5, 2]}})
        run.log_clients(round, [RESULT], {"b": "no\nmemory"})
        assert len(lines(run.path / "rounds.jsonl")) == round
        assert len(lines(run.path / "clients.jsonl")) == 2 * round
    assert lines(run.path / "rounds.jsonl")[1] == {
        "round": 2,
        "loss": None,
        "seconds": {"train": [0.5, 2]},
    }
    good, failed = lines(run.path / "clients.jsonl")[2:]
    assert good["round"] == 2 and ClientResult.from_json(good, Counts) == RESULT
    assert failed == {"round": 2, "client": "b", "error": "no\nmemory"}


def test_report_is_replaced_whole_or_not_at_all(run: RunFolder) -> None:
    run.write_report({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (None, True)}})
    path = run.path / "report.json"
    expected = {"a": None, "b": [1.5, None], "c": {"d": [None, True]}}
    assert json.loads(path.read_text()) == expected
    with pytest.raises(TypeError):
        run.write_report({"a": 1, "b": object()})
    assert json.loads(path.read_text()) == expected
    run.write_report({"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert not list(run.path.glob("*.tmp")) and not list(run.path.glob(".*.tmp"))


def test_a_folder_with_a_run_is_not_written_over(run: RunFolder) -> None:
    run.log_round({"round": 1})
    before = (run.path / "config.yaml").read_text()
    run.close()
    with pytest.raises(ConfigError, match=r"output: got .*one', takes a folder without a run;"):
        RunFolder(run.path, load_config(None, ["seed=1"]))
    assert (run.path / "config.yaml").read_text() == before
    assert len(lines(run.path / "rounds.jsonl")) == 1


@pytest.mark.parametrize(("resume", "key"), [(True, "resume"), (False, "output")])
def test_a_folder_in_use_is_refused(run: RunFolder, resume: bool, key: str) -> None:
    run.log_round({"round": 1})
    line = rf"^{key}: got '{run.path}', takes a folder that no other run is at work on; wait for"
    with pytest.raises(ConfigError, match=line):
        RunFolder(run.path, load_config(None), resume=resume)
    run.log_round({"round": 2})  # it goes on
    assert [line["round"] for line in lines(run.path / "rounds.jsonl")] == [1, 2]
    run.close()
    RunFolder(run.path, load_config(None), resume=True).close()


def test_a_refusal_holds_nothing(run: RunFolder) -> None:
    run.close()
    other = load_config(None, ["training.lr=0.5"])
    for settings, resume in ((load_config(None), False), (other, True)):
        with pytest.raises(ConfigError) as error:
            RunFolder(run.path, settings, resume=resume)
        RunFolder(run.path, load_config(None), resume=True).close()
        assert error.traceback  # which holds all that was there


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fedpers.config import load_config\n"
        "from fedpers.evaluation.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]), load_config(None))\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match="no other run is at work on"):
            RunFolder(tmp_path / "run", load_config(None), resume=True)
        process.kill()
        process.wait()
        RunFolder(tmp_path / "run", load_config(None), resume=True).close()


def test_resume_goes_on_after_a_line_cut_off_by_a_crash(run: RunFolder) -> None:
    run.log_round({"round": 1})
    run.close()
    with (run.path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "lo')
    longer = load_config(None, ["rounds=30"])
    resumed = RunFolder(run.path, longer, resume=True)
    resumed.log_round({"round": 2})
    resumed.close()
    assert [line["round"] for line in lines(run.path / "rounds.jsonl")] == [1, 2]
    assert load_config(run.path / "config.yaml") == longer


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resume: got .*nowhere', takes the folder of a run"):
        RunFolder(tmp_path / "nowhere", Config(), resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output: got .*run', takes a folder") as error:
        RunFolder(tmp_path / "file" / "run", Config())
    assert "\n" not in str(error.value)


def test_close_twice(run: RunFolder) -> None:
    run.log_round({"round": 1, "loss": 1.0})
    run.close()
    run.close()


def test_scalars_reach_tensorboard(run: RunFolder) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert not (run.path / "tensorboard").exists()
    for round in (1, 2):
        run.log_round(
            {
                "round": round,
                "loss": 1 / round,
                "accuracy": {"personal": {"mean": 0.25 * round}, "gated": None},
                "done": True,
                "name": "x",
                "bad": float("nan"),
            }
        )
    run.close()
    events = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    # TensorBoard marks a NaN in its curve, so it is kept there.
    assert sorted(events.Tags()["scalars"]) == ["accuracy/personal/mean", "bad", "loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    means = [e.value for e in events.Scalars("accuracy/personal/mean")]
    assert means == [0.25, 0.5]


def test_without_tensorboard_the_lines_are_still_written(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # its import now fails
    with caplog.at_level(logging.INFO, logger="fedpers"):
        run.log_round({"round": 1, "loss": 1.0})
        run.log_round({"round": 2, "loss": 0.5})
    assert [line["loss"] for line in lines(run.path / "rounds.jsonl")] == [1.0, 0.5]
    assert len(caplog.records) == 1 and "tensorboard" in caplog.text
    assert not (run.path / "tensorboard").exists()


def test_run_ids_tell_the_run_and_differ() -> None:
    config = load_config(None, ["seed=3", "strategy.name=my.methods:Mine", "data.name=org/set.v2"])
    got = new_run_id(config)
    assert re.fullmatch(r"\d{8}-\d{6}-set-v2-Mine-s3-[0-9a-f]{4}", got), got
    assert len({new_run_id(Config()) for _ in range(5)}) > 1


def test_a_run_goes_on_under_its_own_settings_only(run: RunFolder) -> None:
    run.close()
    more = load_config(None, ["rounds=99", "round_timeout=5", "simulation.nodes=3"])
    RunFolder(run.path, more, resume=True).close()
    other = load_config(None, ["training.lr=0.5"])
    with pytest.raises(ConfigError, match=r"^training\.lr: got 0\.5, takes 0\.05, with which the "):
        RunFolder(run.path, other, resume=True)
