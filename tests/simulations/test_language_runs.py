"""Whole runs of tiny language models: methods, encrypted, resumed; what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from languages import save_model, settings
from typer.testing import CliRunner

from fedpers.errors import ConfigError
from simulations.backends.checks import check
from simulations.backends.serial import run_serial
from simulations.commands.cli import app
from simulations.experiments.generate import continuations
from simulations.experiments.predict import FinishedRun

METHODS = ("local", "fedavg", "fedper", "ditto", "feddpa", "pfedsim")
SLOW = ("fedavg-ft", "fedrep", "fedbabu", "apfl", "fedala", "perada")


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """The report of a short run."""
    given = ["simulation.nodes=1", "evaluation.every=2", *overrides]
    folder.mkdir(exist_ok=True)
    config = settings(folder, save_model("llama", folder / "model"), given)
    check(config)
    run_serial(config, folder / "run", show=lambda line: None)
    found: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return found


@pytest.mark.parametrize(
    "method", [*METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_methods_learn_texts(method: str, tmp_path: Path) -> None:
    public = ["data.public_fraction=0.3"] if method == "perada" else []
    report = run(tmp_path, f"strategy.name={method}", *public)
    perplexity = report["perplexity"]
    assert report["task"]["headline"] == "perplexity"
    assert perplexity["personal"]["mean"] < perplexity["base"]["mean"]
    assert report["gain_over_base"] > 0 and report["token_accuracy"]["personal"] is not None


def test_encrypted_and_private_runs(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "strategy.name=fedavg")
    sealed = run(tmp_path / "sealed", "strategy.name=fedavg", "encryption.enabled=true")
    assert sealed["perplexity"]["global"]["mean"] == pytest.approx(
        plain["perplexity"]["global"]["mean"], rel=1e-2
    )
    private = ["privacy.enabled=true", "privacy.delta=0.001", "evaluation.diagnostics=true"]
    report = run(tmp_path / "private", "strategy.name=fedavg", *private)
    assert 0 < report["privacy"]["epsilon_max"] <= 8


def test_what_is_left_is_generated_and_exported(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run(tmp_path, "strategy.name=ditto")
    finished = FinishedRun(tmp_path / "run")
    said = {s.mode: s for s in continuations(finished, "play/1", "the cat", 6)}
    assert list(said) == ["base", "global", "personal"]
    assert all(1 <= s.tokens <= 6 for s in said.values())
    with pytest.raises(ConfigError, match="--prompt"):
        continuations(finished, "play/1", "", 6)
    arguments = [
        "generate",
        str(tmp_path / "run"),
        "--client",
        "1",
        "--prompt",
        "on",
        "--tokens",
        "3",
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "personal" in shown.output
    finished.export("play/1", tmp_path / "out")
    finished.load("play/1")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = finished.data.inputs[:2, 0]
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, str(tmp_path / "out"))(input_ids=ids).logits
        own: Any = finished.model.trunk.get_submodule("model")
        torch.testing.assert_close(found, own(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_adapters_of_all_clients_on_one_model(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run(tmp_path, "strategy.name=ditto")
    folders = sorted((tmp_path / "run" / "adapters").iterdir())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    served = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="0")
    for k, folder in enumerate(folders[1:], start=1):
        served.load_adapter(str(folder), adapter_name=str(k))
    ids, found = torch.arange(5)[None], []
    for k in range(len(folders)):
        served.set_adapter(str(k))
        with torch.no_grad():
            found.append(served(input_ids=ids).logits)
    assert len(found) == 4 and not torch.allclose(found[0], found[1])
