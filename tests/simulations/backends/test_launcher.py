"""The launcher, with a real SuperLink and Ray: how runs end, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedpers.config import Config
from fedpers.errors import ConfigError, FedpersError, RunError
from simulations.backends import guard
from simulations.backends.flower import Lines, Space, environment, parse_status
from simulations.backends.launcher import launch

TOYS = Path(__file__).parents[2] / "tools"
ROOT = TOYS.parents[1]

# The command line with a toy in place of the real apps.
DRIVER = """
from functools import partial
from simulations.backends import launcher
launcher.launch = partial(
    launcher.launch, serverapp="toy_server:app", clientapp="toy_client:app")
from simulations.commands import cli, run
run.show = lambda folder: None  # a toy has no report
cli.main()
"""


def launch_toy(folder: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> list[str]:
    """Launch the toy from the working folder that holds it; the lines shown."""
    monkeypatch.setenv("TOY", end)
    monkeypatch.chdir(TOYS)
    lines: list[str] = []
    processes: set[psutil.Process] = set()
    others = set(psutil.Process().children(recursive=True))  # an earlier test's, not the launch's

    def show(line: str) -> None:
        if not line.startswith("network: "):  # where the system gives none of its own
            lines.append(line)
        processes.update(set(psutil.Process().children(recursive=True)) - others)

    apps = {"serverapp": "toy_server:app", "clientapp": "toy_client:app"}
    try:
        launch(Config(), folder / "run", **apps, show=show)  # type: ignore[arg-type]
    finally:
        assert len(processes) >= 5  # guard, SuperLink, its SuperExec, log stream, simulation
        assert_gone(list(processes))
    return lines


def test_status_is_read_from_flowers_answer() -> None:
    answer = {"success": True, "runs": [{"status": "finished:failed", "status-details": "why"}]}
    assert parse_status(answer) == ("finished:failed", "why")
    assert parse_status({"runs": [{"status": "running"}]}) == ("running", "no reason given")
    for wrong in ({}, {"runs": []}, {"runs": [{}]}):
        with pytest.raises(RunError, match="cannot read"):
            parse_status(wrong)


def test_lines_are_whole_and_come_once(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "log")
    assert lines.new() == []
    with (tmp_path / "log").open("wb", buffering=0) as file:
        file.write(b"one\ntw")
        assert lines.new() == ["one"]
        file.write("o é"[:-1].encode() + b"\xc3")
        assert lines.new() == []
        file.write(b"\xa9\n\n")
        assert lines.new() == ["two é", ""]


def test_the_environment_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"here{os.pathsep}{os.pathsep}/there")
    monkeypatch.setenv("FEDPERS_DATA", "data")
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    env = environment(tmp_path / "space", "mark")
    assert env["PYTHONPATH"].split(os.pathsep)[:2] == [str(tmp_path / "here"), "/there"]
    assert env["FEDPERS_DATA"] == str(tmp_path / "data")
    assert env["FLWR_HOME"].startswith(str(tmp_path / "space"))
    assert env["RAY_TMPDIR"] == str(tmp_path / "space")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    theirs = environment(tmp_path, "mark")
    assert not {"RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & theirs.keys()


@pytest.mark.parametrize("address", [None, "", "local"])  # Ray starts nodes of its own
def test_each_launch_has_a_token_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "known")
    found = [environment(tmp_path, "mark") for _ in range(2)]
    assert [env["RAY_AUTH_MODE"] for env in found] == ["token", "token"]
    tokens = {env["RAY_AUTH_TOKEN"] for env in found}
    assert len(tokens) == 2 and all(len(bytes.fromhex(token)) == 32 for token in tokens)
    assert found[0]["RAY_AUTH_TOKEN"] not in repr(Space(tmp_path, found[0]))


def test_a_cluster_of_others_keeps_the_users_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"RAY_ADDRESS": "head:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "theirs"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert given.items() <= environment(tmp_path, "mark").items()


@pytest.mark.slow
def test_a_server_app_that_raises_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"the ServerApp raised ValueError: boom and more"):
        launch_toy(tmp_path, monkeypatch, "raise")
    assert "ValueError: boom" in (tmp_path / "run" / "flower.log").read_text()


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    process = start_cli(tmp_path, "wait")
    processes = wait_until_answered(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("stopped before a round was over")
    assert "Traceback" not in errors
    assert_gone(processes)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_other_signals_stop_everything_too(tmp_path: Path, sign: signal.Signals) -> None:
    process = start_cli(tmp_path, "wait")
    processes = wait_until_answered(process)
    process.send_signal(sign)
    process.communicate(timeout=30)
    assert process.returncode == (-9 if sign == signal.SIGKILL else 130)
    if sign == signal.SIGKILL:  # the guard is at work still
        psutil.wait_procs(processes, timeout=20)
    assert_gone(processes)


@pytest.mark.slow
def test_a_run_that_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = launch_toy(tmp_path, monkeypatch, "complete")
    # An empty working folder, both nodes' answers, and no line of Flower's own.
    assert lines == [
        "starting Flower and Ray",
        f"started in [] with {tmp_path / 'run'}",
        "answers [40, 41]",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "kind", "text"),
    [
        ("user", FedpersError, r"data\.clients: got 0, takes an integer >= 1$"),
        ("run", RunError, r"nobody is left; Flower's log is in "),
        ("exit", RunError, r"SystemExit: 5"),
    ],
)
def test_other_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    kind: type[FedpersError],
    text: str,
) -> None:
    with pytest.raises(kind, match=text) as caught:
        launch_toy(tmp_path, monkeypatch, end)
    assert isinstance(caught.value, RunError) == (kind is RunError)
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.slow
def test_two_launches_at_once_do_not_meet(tmp_path: Path) -> None:
    both = [start_cli(tmp_path, "complete") for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "answers [40, 41]" in output


def start_cli(folder: Path, end: str) -> subprocess.Popen[str]:
    (folder / "settings.yaml").write_text("rounds: 1\n")
    path = os.pathsep.join([str(ROOT), str(TOYS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, "run", "settings.yaml"],
        cwd=folder,
        env={**os.environ, "TOY": end, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_answered(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until the nodes have answered; the processes of the launch."""
    assert process.stdout is not None
    line = next((line for line in process.stdout if line.startswith("answers")), None)
    if line is None:
        assert process.stderr is not None
        pytest.fail(process.stderr.read())
    children = psutil.Process(process.pid).children()
    marks = {child.environ().get(guard.MARK, "") for child in children} - {""}
    (mark,) = marks
    processes = guard.marked(mark)
    names = {one.name() for one in processes}
    assert {"raylet", "gcs_server"} <= names and len(processes) >= 8
    return [*processes, *(child for child in children if child not in processes)]


def assert_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 10  # for the system to note what was killed
    while alive := [one for one in processes if guard._runs(one)]:
        assert time.monotonic() < deadline, [one.cmdline() for one in alive]
        time.sleep(0.05)
