"""The audit: it finds what is broken, and clears what is not, on the clients' real code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpers.config import Config
from fedpers.errors import ConfigError
from fedpers.privacy.audit.inversion import psnr
from simulations.attacks.audit import audit, audit_lines, refuted, results_folder
from simulations.attacks.inversion import invert
from simulations.attacks.membership import membership
from simulations.commands.cli import app

PRIVATE = ("privacy.enabled=true", "privacy.delta=1e-5", "privacy.deterministic_for_tests=true")


def test_an_update_shows_its_example_unless_noised(images: Callable[..., Config]) -> None:
    config = images("privacy.epsilon=1")
    original, found = invert(config, examples=1, steps=150)
    assert original.shape == found.shape == (1, 1, 5, 5)
    assert psnr(original, found, 2.0) > 20
    noised = replace(config.privacy, enabled=True, deterministic_for_tests=True)
    _, hidden = invert(replace(config, privacy=noised), examples=1, steps=150)
    assert psnr(original, hidden, 2.0) < 10


def test_members_are_half_of_each_clients_examples(images: Callable[..., Config]) -> None:
    # A personal model trained long on few examples of much noise remembers them.
    overrides = ["strategy.name=local", "training.epochs=60", "training.lr=0.2"]
    found = membership(images(*overrides), shadows=2)
    assert (found["members"], found["others"]) == (40, 40)
    assert {"loss", "lira"} == found["personal"].keys() and "upload" not in found
    assert found["personal"]["loss"]["auc"] > 0.55
    figures = found["personal"]["lira"]
    assert figures.keys() == {"auc", "tpr_at_1_fpr", "tpr_at_0.1_fpr"}
    assert figures["tpr_at_1_fpr"] == figures["tpr_at_0.1_fpr"]  # of 40 others none may pass


def test_either_bound_refutes_the_claim() -> None:
    epsilon = {"claimed": 1.0, "at_least": 0.5, "at_least_any": 0.25}
    epsilon |= {"canaries": 100, "guesses": 24, "correct": 15}
    figures = {"auc": 0.5, "tpr_at_1_fpr": 0.02, "tpr_at_0.1_fpr": 0.001}
    membership = {"on": {"upload": {"lira": figures}}}
    found = {"epsilon": epsilon, "membership": membership, "inversion": None}
    assert audit_lines(found) == [
        "epsilon: claimed 1, at least 0.5, or 0.25 whatever the mechanism is (100 canaries; 15 of "
        "24 guesses): not refuted",
        "membership, privacy on   upload   lira  AUC 0.500  TPR at 1 % FPR 2.0 %, at 0.1 % 0.1 %",
    ]
    assert not refuted(found) and not refuted({"epsilon": None})
    for bound in ("at_least", "at_least_any"):
        broken = {**found, "epsilon": {**epsilon, bound: 1.01}}
        assert refuted(broken) and audit_lines(broken)[0].endswith("BROKEN")


def test_privacy_by_client_is_not_audited_by_examples(
    images: Callable[..., Config], tmp_path: Path
) -> None:
    line = (
        r"^privacy\.unit: got 'client', takes example: what is inserted to be found are examples "
        r"of one client; or set privacy\.enabled=false$"
    )
    with pytest.raises(ConfigError, match=line):
        audit(images(*PRIVATE, "privacy.unit=client"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "client.yaml").write_text(images(*PRIVATE[:1], "privacy.unit=client").to_yaml())
    found = CliRunner().invoke(app, ["audit", str(tmp_path / "client.yaml")])
    assert found.exit_code == 2 and found.stderr.startswith("error: privacy.unit: got 'client'")
    assert found.stderr.count("\n") == 1


def test_where_the_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run-1.0"
    run.mkdir()
    assert results_folder(run, [], None) == results_folder(Path("run-1.0"), [], None) == run
    # With other settings it is not that run that is audited.
    assert results_folder(run, ["rounds=3"], None) == tmp_path / "runs" / "audit-run-1.0"
    assert results_folder(Path("some/digits.yaml"), [], None) == tmp_path / "runs" / "audit-digits"
    assert results_folder(run, ["rounds=3"], Path("there")) == tmp_path / "there"


@pytest.mark.slow
def test_an_audit_of_a_run_is_in_its_report(images: Callable[..., Config], tmp_path: Path) -> None:
    config = images("privacy.enabled=true", f"output={tmp_path / 'runs'}", "rounds=1")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    command = CliRunner()
    ran = command.invoke(app, ["run", str(tmp_path / "run.yaml"), "--backend", "serial"])
    assert ran.exit_code == 0, ran.output
    (run,) = (tmp_path / "runs").iterdir()
    audited = command.invoke(app, ["audit", str(run), "--canaries", "10", "--shadows", "2"])
    assert audited.exit_code == 0, audited.output
    assert json.loads((run / "audit.json").read_text())["epsilon"]["canaries"] == 10
    assert (run / "inversion.png").exists() and f"files: {run}" in audited.stdout
    shown = command.invoke(app, ["report", str(run)])
    assert shown.exit_code == 0, shown.output
    page = (run / "report.html").read_text()
    assert "The claim is not refuted." in page and "data:image/png;base64," in page


@pytest.mark.slow
def test_the_command(images: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "audited.yaml").write_text(images(*PRIVATE, "privacy.epsilon=1").to_yaml())
    out = tmp_path / "results"
    arguments = ["audit", str(tmp_path / "audited.yaml"), "training.lr=0.1", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--canaries", "10", "--shadows", "2"])
    assert result.exit_code == 0, result.output
    assert "epsilon: claimed 1, at least 0, or 0 whatever" in result.stdout
    assert "not refuted" in result.stdout and "membership, privacy on" in result.stdout
    found = json.loads((out / "audit.json").read_text())
    assert found.keys() == {"epsilon", "membership", "inversion"}
    assert len(found["inversion"]["off"]) == len(found["inversion"]["on"]) == 6
    assert (out / "inversion.png").read_bytes().startswith(b"\x89PNG")
