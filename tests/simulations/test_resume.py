"""A run whose server was killed goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpers.parts import Parts

PRIVATE = ["privacy.enabled=true", "privacy.deterministic_for_tests=true"]
CASES = {
    "ditto": [],
    "pfedsim": ["strategy.name=pfedsim", "strategy.params.rho=0.4"],
    "private": [
        *(*PRIVATE, "privacy.lr=0.5", "privacy.weights=counts", "privacy.delta=1e-3"),
        *("strategy.name=perada", "strategy.params.distill=false"),
    ],
}

Start = Callable[..., "subprocess.Popen[str]"]


def run_folder(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def left(folder: Path) -> dict[str, str]:
    """What must be the same: the clients' stores, the ledgers, the last checkpoint."""
    paths = [*folder.glob("state/**/*"), *folder.glob("checkpoint/round-000006/*")]
    found = {str(path.relative_to(folder)): path for path in paths if path.is_file()}
    # Names of the run, or the bytes of metadata in no fixed order, are all that these add.
    return {k: content(p) for k, p in found.items() if p.name not in RUN_NAMED}


def content(path: Path) -> str:
    if path.suffix == ".safetensors":  # its metadata are in no fixed order
        return Parts.load(path).digest()
    if (
        path.parent.name == "ledgers" and path.suffix == ".json"
    ):  # each has a random name of its own
        kept = json.loads(path.read_text())
        return json.dumps([kept["charges"], kept["releases"]])
    return path.read_text()


RUN_NAMED = ("account.json", "answer.json", "digests.json")


def scores(folder: Path) -> dict[tuple[int, str], object]:
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    return {(line["round"], line["client"]): line["test"] for line in lines}


@pytest.mark.parametrize(
    "name",
    [name if name == "private" else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_a_killed_run_goes_on_bit_for_bit(start: Start, tmp_path: Path, name: str) -> None:
    whole = start("whole", *CASES[name])
    assert whole.wait() == 0, whole.communicate()[0]
    killed = start("killed", *CASES[name], killed=True)
    output = killed.communicate()[0]
    assert killed.returncode == -signal.SIGKILL, output
    folder = run_folder(tmp_path / "killed")
    assert not (folder / "report.json").exists()
    resumed = start("killed", *CASES[name], "--resume", str(folder))
    output = resumed.communicate()[0]
    assert resumed.returncode == 0 and "resumed after round 3" in output, output
    reference = run_folder(tmp_path / "whole")
    found, expected = left(folder), left(reference)
    assert found == expected
    assert scores(folder) == scores(reference)
    reports = [json.loads((f / "report.json").read_text()) for f in (folder, reference)]
    for figure in ("accuracy", "gain_over_global", "privacy", "communication"):
        assert reports[0][figure] == reports[1][figure]


@pytest.mark.slow
def test_a_round_that_was_charged_is_charged_again_for_a_population(
    start: Start, tmp_path: Path
) -> None:
    settings = [*PRIVATE, "privacy.unit=client", "strategy.name=fedper"]
    assert start("killed", *settings, killed=True).wait() == -signal.SIGKILL
    folder = run_folder(tmp_path / "killed")
    resumed = start("killed", *settings, "--resume", str(folder))
    output = resumed.communicate()[0]
    # Round 4 was paid for and its noise is drawn anew: nothing is left for round 6.
    assert resumed.returncode == 0 and "round 6: budget spent" in output, output
    (release,) = json.loads((folder / "state/ledgers/population.json").read_text())["releases"]
    assert release["steps"] == 6
    assert json.loads((folder / "report.json").read_text())["privacy"]["epsilon_max"] <= 8


@pytest.mark.slow
def test_of_two_that_resume_a_run_one_goes_on(start: Start, tmp_path: Path) -> None:
    assert start("killed", killed=True).wait() == -signal.SIGKILL
    folder = run_folder(tmp_path / "killed")
    both = [start("killed", "--resume", str(folder)) for _ in range(2)]
    outputs = {process.wait(): process.communicate()[0] for process in both}
    assert set(outputs) == {0, 2}, outputs
    line = f"error: resume: got '{folder}', takes a folder that no other run is at work on; wait"
    assert outputs[2].splitlines()[-1].startswith(line)
    rounds = [json.loads(x)["round"] for x in (folder / "rounds.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3, 4, 4, 5, 6]


@pytest.mark.slow
def test_what_cannot_be_resumed_is_one_line(start: Start, tmp_path: Path) -> None:
    nothing = start("out", "--resume", str(tmp_path))
    output = nothing.communicate()[0]
    assert nothing.returncode == 2
    assert "takes the folder of a run to resume" in output.splitlines()[-1]
    first = start("out", "rounds=1")
    assert first.wait() == 0
    folder = run_folder(tmp_path / "out")
    other = start("out", "rounds=2", "training.lr=0.5", "--resume", str(folder))
    output = other.communicate()[0]
    assert other.returncode == 2
    assert output.splitlines()[-1].startswith("error: training.lr: got 0.5, takes 0.3, with which")
    over = start("out", "rounds=1", "--resume", str(folder))
    assert "takes more than the 1 that the run has had" in over.communicate()[0]
    assert over.returncode == 2
    more = start("out", "rounds=2", "--resume", str(folder))
    assert more.wait() == 0
    rounds = [json.loads(x)["round"] for x in (folder / "rounds.jsonl").read_text().splitlines()]
    assert rounds == [1, 2]
