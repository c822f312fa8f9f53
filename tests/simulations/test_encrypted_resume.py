"""An encrypted run whose server was killed goes on under the same key."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpers.parts import Parts

ENCRYPTED = "encryption.enabled=true"
Start = Callable[..., "subprocess.Popen[str]"]


def run_folder(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def stores(folder: Path) -> dict[str, str]:
    """What clients keep, bit for bit."""
    paths = folder.glob("state/**/*.safetensors")
    return {str(p.relative_to(folder)): Parts.load(p).digest() for p in paths}


def correct(folder: Path) -> dict[tuple[int, str], object]:
    """Right answers of each model, by round and client."""
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    return {(line["round"], line["client"]): line["test"]["correct"] for line in lines}


# Sums under BFV are exact, and so the whole run; CKKS adds its own small errors anew each time.
CASES = {
    "fedavg": ["strategy.name=fedavg-ft", "encryption.scheme=bfv"],
    "perada": ["strategy.name=perada", "strategy.params.kd_steps=10", "encryption.scheme=bfv"],
    "pfedsim": ["strategy.name=pfedsim", "strategy.params.rho=0.4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_goes_on(start: Start, tmp_path: Path, name: str) -> None:
    settings = [ENCRYPTED, *CASES[name], "training.lr=0.3"]
    whole = start("whole", *settings)
    assert whole.wait() == 0, whole.communicate()[0]
    assert start("killed", *settings, killed=True).wait() == -signal.SIGKILL
    folder, homes = run_folder(tmp_path / "killed"), tmp_path / "tmp"
    assert len(list(homes.glob("fedpers-keys-*/*/client.key"))) == 1  # it waits to go on
    sealed = list(folder.glob("checkpoint/*/*.sealed"))
    assert bool(sealed) == (name != "perada")  # the server knows PerAda's mean
    resumed = start("killed", *settings, "--resume", str(folder))
    output = resumed.communicate()[0]
    assert resumed.returncode == 0 and "resumed after round" in output, output
    reference = run_folder(tmp_path / "whole")
    if name != "pfedsim":
        assert stores(folder) == stores(reference)
    assert correct(folder) == correct(reference)
    assert not list(homes.glob("fedpers-keys-*/*"))
    reports = [json.loads((f / "report.json").read_text()) for f in (folder, reference)]
    assert reports[0]["communication"] == reports[1]["communication"]


@pytest.mark.slow
def test_a_killed_run_of_masked_sums_goes_on_under_fresh_tags(start: Start, tmp_path: Path) -> None:
    settings = [ENCRYPTED, "encryption.scheme=masked", "strategy.name=fedavg-ft", "training.lr=0.3"]
    whole = start("whole", *settings)
    assert whole.wait() == 0, whole.communicate()[0]
    assert start("killed", *settings, killed=True).wait() == -signal.SIGKILL
    folder = run_folder(tmp_path / "killed")
    resumed = start("killed", *settings, "--resume", str(folder))
    output = resumed.communicate()[0]
    assert resumed.returncode == 0 and "resumed after round 3" in output, output
    reference = run_folder(tmp_path / "whole")
    assert stores(folder) == stores(reference)  # bit for bit: other masks, the same sums
    assert correct(folder) == correct(reference)
    served = {
        which: {json.loads(p.read_text())["tag"] for p in place.glob("state/**/served.json")}
        for which, place in (("whole", reference), ("killed", folder))
    }
    assert served == {"whole": {6}, "killed": {7}}  # round 4 had a second one


@pytest.mark.slow
def test_a_key_that_is_gone_is_one_line(start: Start, tmp_path: Path) -> None:
    first = start("out", ENCRYPTED, "strategy.name=fedper", "rounds=2")
    assert first.wait() == 0, first.communicate()[0]
    folder = run_folder(tmp_path / "out")
    again = start("out", ENCRYPTED, "strategy.name=fedper", "rounds=3", "--resume", str(folder))
    output = again.communicate()[0]
    assert again.returncode == 2, output
    last = output.splitlines()[-1]
    assert "under which the checkpoint is sealed; a key made for a run is thrown away" in last
    assert not list(tmp_path.glob("tmp/fedpers-keys-*/*"))
    # With keys of one's own it goes on.
    from fedpers.channels.sealed import new_keys

    new_keys(tmp_path / "keys", "auto", 5)
    own = [ENCRYPTED, "strategy.name=fedper", f"encryption.keys={tmp_path / 'keys'}"]
    assert start("own", *own, "rounds=2").wait() == 0
    more = start("own", *own, "rounds=3", "--resume", str(run_folder(tmp_path / "own")))
    assert more.wait() == 0, more.communicate()[0]
