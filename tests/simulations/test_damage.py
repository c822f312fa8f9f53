"""Files of a run that a crash or a disk has damaged, and disks that take no more: one line each,
and as much as can be goes on."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fedpers.config import load_config
from fedpers.errors import RunError
from fedpers.evaluation.run_files import read_lines
from fedpers.evaluation.run_folder import RunFolder
from fedpers.parts import Part, Parts
from simulations.commands.cli import app
from strategies.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = [
    *("rounds=3", "data.clients=4", "model.name=mlp", "strategy.name=fedavg"),
    *("evaluation.every=1", "evaluation.outside=0", "evaluation.local_baseline=false"),
    *("model.standardise=false", "model.pretrain.task=none", "strategy.params={}"),
]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds."""
    output = tmp_path_factory.mktemp("output")
    result = invoke("run", "configs/digits.yaml", "--backend=serial", *SMALL, f"output={output}")
    assert result.exit_code == 0, result.output
    (folder,) = output.iterdir()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def slow(*values: Any) -> list[Any]:
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def change(path: Path, old: bytes, new: bytes) -> None:
    """Put ``new`` in place of the first ``old`` of a file."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def nul(run: Path) -> None:
    for name in ("rounds", "clients"):
        change(run / f"{name}.jsonl", b"\n", b"\n\0\0\0\0\n")


def half(run: Path) -> None:
    """The second line of each was cut off, and the next one written behind it."""
    for name in ("rounds", "clients"):
        lines = (run / f"{name}.jsonl").read_bytes().split(b"\n")
        lines[1] = lines[1][: len(lines[1]) // 2]
        (run / f"{name}.jsonl").write_bytes(b"\n".join(lines))


def torn(run: Path) -> None:
    for name in ("rounds", "clients"):
        path = run / f"{name}.jsonl"
        os.truncate(path, path.stat().st_size - 9)


def odd(run: Path) -> None:
    """Lines that are JSON, and not what they should be."""
    change(run / "rounds.jsonl", b'"seconds"', b'"minutes"')
    change(run / "clients.jsonl", b'"test"', b'"tset"')
    for name in ("rounds", "clients"):
        with (run / f"{name}.jsonl").open("a") as file:
            file.write('7\n[]\n{"round": "x"}\n{"round": 3, "client": null, "test": 5}\n')


DAMAGES: list[Callable[[Path], None]] = [nul, half, torn, odd]


@pytest.mark.parametrize("damage", DAMAGES)
def test_readers_go_on_without_damaged_lines(run: Path, damage: Callable[[Path], None]) -> None:
    damage(run)
    for command in (["report", str(run)], ["watch", str(run), "--once"]):
        result = invoke(*command)
        assert result.exit_code == 0, (result.output, result.exception)
    found = invoke("watch", str(run), "--once").stdout
    assert "round 3/3" in found or damage is torn
    assert "personal" in found


def test_readers_say_that_a_run_has_failed(run: Path) -> None:
    change(run / "report.json", b'"failed": null', b'"failed": "round 3: nobody [red] was there"')
    for command in (["report", str(run)], ["watch", str(run), "--once"]):
        assert "failed: round 3: nobody [red] was there" in invoke(*command).stdout
    assert "This run failed: round 3: nobody [red]" in (run / "report.html").read_text()


@pytest.mark.parametrize("damage", [nul, *slow(half, torn, odd)])
def test_a_run_is_resumed_without_damaged_lines(run: Path, damage: Callable[[Path], None]) -> None:
    damage(run)
    more = ["rounds=4" if setting == "rounds=3" else setting for setting in SMALL]
    result = invoke(
        *("run", "configs/digits.yaml", "--backend=serial", *more, "--resume", str(run))
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "resumed after round 3" in result.stdout
    told = {
        nul: "rounds.jsonl: line 2 cannot be read, and is left out",
        half: "goes without rounds [2], not there whole",
        torn: "goes without rounds [3], not there whole",
        odd: "clients.jsonl: a line of round 1 is left out: ",
    }
    assert told[damage] in result.stdout
    report = json.loads((run / "report.json").read_text())
    assert report["selected_round"] == 4 and report["failed"] is None


def without(name: str) -> Callable[[Path], None]:
    """Takes a value out of the last checkpoint's state."""

    def damage(run: Path) -> None:
        path = run / "checkpoint" / "round-000003" / "state.json"
        kept = json.loads(path.read_text())
        (holder,) = (h for h in (kept, kept["values"], kept["values"]["run"]) if name in h)
        del holder[name]
        path.write_text(json.dumps(kept))

    return damage


def cut_state(run: Path) -> None:
    os.truncate(run / "checkpoint" / "round-000003" / "state.json", 20)


def flip_a_bit(run: Path) -> None:
    path = run / "checkpoint" / "round-000003" / "parts.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def another_digit(run: Path) -> None:
    """What can still be read, and says something else."""
    path = run / "checkpoint" / "round-000003" / "state.json"
    data = bytearray(path.read_bytes())
    (place, *_) = [k for k, byte in enumerate(data) if chr(byte).isdigit()]
    data[place] ^= 1
    json.loads(data)
    path.write_bytes(data)


def another_round(run: Path) -> None:
    """The state of the round before, whole."""
    before = run / "checkpoint" / "round-000002" / "state.json"
    shutil.copy(before, run / "checkpoint" / "round-000003" / "state.json")


def no_parts(run: Path) -> None:
    (run / "checkpoint" / "round-000003" / "parts.safetensors").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        another_digit,
        *slow(
            another_round,
            without("spent"),
            without("groups"),
            without("values"),
            cut_state,
            flip_a_bit,
            no_parts,
        ),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_taken(
    run: Path, damage: Callable[[Path], None]
) -> None:
    damage(run)
    go_on = ["run", "configs/digits.yaml", "--backend=serial", *SMALL, "--resume", str(run)]
    result = invoke(*go_on)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "round-000003 is damaged (" in result.stdout and "after round 2" in result.stdout
    for path in (run / "checkpoint").glob("round-*/state.json"):
        path.write_text("{}")
    result = invoke(*go_on)
    assert result.exit_code == 2
    line = f"error: resume: got '{run}', takes a run with an intact checkpoint; start it anew\n"
    assert result.stderr == line


# -- a disk that takes no more -------------------------------------------------------------------


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """This process can write no file of more than ``most`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusal(path: Path) -> str:
    return rf"^{path}: cannot be written \(.*File too large.*\); make room and resume the run$"


def test_each_file_of_a_run_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", load_config(None))
    parts, long = Parts({"body": Part.of({"w": torch.zeros(1000)})}), "x" * 2000
    attempts = {
        "rounds.jsonl": lambda: folder.log_round({"round": 1, "why": long}),
        "clients.jsonl": lambda: folder.log_clients(1, [], {"a": long}),
        "report.json": lambda: folder.write_report({"why": long}),
        "checkpoint": lambda: save_checkpoint(folder.path / "checkpoint", 1, ({"p": parts}, {})),
    }
    for name, attempt in attempts.items():
        with files_of(1000), pytest.raises(RunError, match=refusal(folder.path / name)):
            attempt()
    with files_of(1000):
        folder.close()
    # With room again the run goes on, from a line's beginning.
    folder = RunFolder(tmp_path / "run", load_config(None), resume=True)
    folder.log_round({"round": 1})
    folder.close()
    assert (folder.path / "rounds.jsonl").read_text() == '{"round": 1}\n'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_is_one_line_and_the_lines_before_stay(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "run", load_config(None))
    said = re.escape(f"{folder.path / 'rounds.jsonl'}: cannot be written (No space left on device)")
    with pytest.raises(RunError, match=said):
        for number in range(1000):
            folder.log_round({"round": number, "why": "x" * 1000})
    large = Parts({"body": Part.of({"w": torch.zeros(10**5)})})
    for attempt in (
        lambda: folder.write_report({"why": "x" * 60_000}),
        lambda: save_checkpoint(folder.path / "checkpoint", 1, ({"p": large}, {})),
    ):
        with pytest.raises(RunError, match=r"cannot be written .*; make room and resume the run$"):
            attempt()
    folder.close()
    # A torn last line is left out by those who read, and cut off by who goes on.
    (small_disk / "run" / "report.json").unlink(missing_ok=True)
    shutil.rmtree(small_disk / "run" / "tensorboard", ignore_errors=True)
    lines = read_lines(small_disk / "run" / "rounds.jsonl")
    assert lines and [line["round"] for line in lines] == list(range(len(lines)))
    shutil.rmtree(small_disk / "run" / "checkpoint", ignore_errors=True)
    folder = RunFolder(small_disk / "run", load_config(None), resume=True)
    folder.close()
    assert (small_disk / "run" / "rounds.jsonl").read_bytes().endswith(b"}\n")


@pytest.mark.slow
@pytest.mark.parametrize("most", [5_000, 12_000])
def test_a_run_on_a_full_disk_ends_in_one_line(tmp_path: Path, most: int) -> None:
    """No file may be longer: the clients' results are, or later the parts."""
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
        "from simulations.commands.cli import main\n"
        "main()\n"
    )
    settings = [*SMALL, f"output={tmp_path / 'runs'}", "evaluation.adapters=false"]
    command = [sys.executable, "-c", program, "run", "configs/digits.yaml", "--backend=serial"]
    done = subprocess.run(
        [*command, *settings],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.stderr.startswith(f"error: {folder}/") and done.stderr.count("\n") == 1
    assert "cannot be written (File too large); make room" in done.stderr


def test_a_page_that_cannot_be_written_is_one_line(run: Path) -> None:
    with files_of(1000):
        result = invoke("report", str(run))
    assert result.exit_code == 1
    assert result.stderr == f"error: {run / 'report.html'}: File too large\n"
