"""What a run left predicts what the run counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from fedpers.config import Config, load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError, DataError
from fedpers.tasks import Classification
from simulations.backends.serial import run_serial
from simulations.commands.cli import app
from simulations.experiments.predict import FinishedRun, Predictions, read_inputs, table
from simulations.experiments.runs import find_run

CLIENTS = ("ann", "bob", "4")
Run = Callable[..., tuple[Config, Path]]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def sensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file of three clients, 60 examples each, who mark the same classes differently."""
    rng = np.random.default_rng(3)
    lines = ["a,b,label,who"]
    for number, client in enumerate(CLIENTS):
        for _ in range(60):
            a, b = rng.standard_normal(2)
            label = int(a + 0.7 * (number - 1) + 0.3 * rng.standard_normal() > 0)
            lines.append(f"{a:.4f},{b:.4f},{label},{client}")
    path = tmp_path_factory.mktemp("sensors") / "sensors.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def run(sensors: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``run("ditto", "rounds=3")``: the settings and the folder of a small run that has ended."""

    def run(name: str, *overrides: str) -> tuple[Config, Path]:
        settings = [
            *("data.name=csv", f"data.path={sensors}", "data.columns.features=[a,b]"),
            *("data.columns.client=who", "data.partition.name=natural", "model.name=mlp"),
            *("training.lr=0.5", "training.batch_size=8", "rounds=3", "evaluation.every=1"),
            *("evaluation.local_baseline=false", f"strategy.name={name}", *overrides),
        ]
        config = load_config(None, settings)
        folder = tmp_path_factory.mktemp("runs") / "run"
        run_serial(config, folder, show=lambda line: None)
        return config, folder

    return run


@pytest.fixture(scope="module")
def ditto(run: Run) -> tuple[Config, Path]:
    return run("ditto", "strategy.params.mu=0.01")


def results(folder: Path) -> dict[str, Any]:
    """The last line of each client in the round that the report takes."""
    taken = json.loads((folder / "report.json").read_text())["selected_round"]
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    return {line["client"]: line for line in lines if line["round"] == taken}


def check(config: Config, folder: Path) -> list[Predictions]:
    """Every client's saved models get as many test examples right as the run counted."""
    finished, data, counted = FinishedRun(folder), load_data(config), results(folder)
    assert list(finished.clients) == ["4", "ann", "bob"]
    found = []
    for client in finished.clients:
        test = data.client(client).test
        found.append(finished.predict(client, test.x))
        for mode, logits in found[-1].scores.items():
            right = int((logits.argmax(dim=1) == test.y).sum())
            assert right == counted[client]["test"]["correct"][mode], (client, mode)
        assert set(found[-1].scores) == set(counted[client]["test"]["correct"]) - {"gated"}
    return found


def test_models_predict_what_the_run_counted(ditto: tuple[Config, Path]) -> None:
    found = check(*ditto)
    personal = [p.scores["personal"] for p in found]
    assert any(
        not torch.equal(p.scores["personal"].argmax(1), p.scores["global"].argmax(1)) for p in found
    )
    assert len({float(logits[:, 0].sum()) for logits in personal}) == 3
    assert all(p.gate in ("personal", "global") for p in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides", "modes"),
    [
        ("intercept", [], 2),
        ("prior", [], 2),
        ("fedcp", [], 2),
        ("apfl", [], 2),
        ("pfedsim", [], 2),
        ("fedbabu", [], 2),
        ("fedavg-ft", [], 2),
        ("fedavg", ["model.lora.share=a-only"], 2),
        ("ditto", ["model.lora=null", "training.lr=0.05"], 2),
        ("ditto", ["evaluation.select=validation", "rounds=6", "training.lr=3"], 2),
        ("fedper", [], 1),
        ("local", [], 1),
    ],
)
def test_so_do_those_of_other_methods(
    run: Run, name: str, overrides: list[str], modes: int
) -> None:
    config, folder = run(name, *overrides)
    for found in check(config, folder):
        assert len(found.scores) == modes and (found.gate is None) == (modes == 1)
    assert (folder / "global.safetensors").exists() == (name != "local")


def test_the_table_by_hand() -> None:
    odds = torch.tensor([[np.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float32)
    task = Classification(["cat", "dog"])
    found = Predictions("ann", {"personal": odds, "global": -odds}, task, "global", "a note")
    shown = table(found)
    columns = [list(column.cells) for column in shown.columns]
    assert [column.header for column in shown.columns][1:] == [
        "personal",
        "global",
        "gated: global",
    ]
    assert columns[0] == ["0", "1"]
    assert columns[1] == ["cat (0.750)", "cat (0.500)"]
    assert columns[2] == columns[3] == ["dog (0.750)", "cat (0.500)"]
    assert shown.caption == "a note"
    alone = table(Predictions("ann", {"personal": odds}, task, None))
    assert [list(column.cells) for column in alone.columns][2:] == [["-", "-"], ["-", "-"]]


def test_a_client_by_name_or_place(ditto: tuple[Config, Path]) -> None:
    finished = FinishedRun(ditto[1])
    # The places are those in natural order: 4, ann, bob. A name comes before a place.
    for given, client in {"ann": "ann", "1": "ann", "2": "bob", "4": "4", "0": "4"}.items():
        assert finished.client(given) == client
    for wrong in ("3", "eve", "-1", ""):
        with pytest.raises(ConfigError, match=r"--client: got .* takes one of 4, ann, bob, or a"):
            finished.client(wrong)


def test_the_command_and_its_mistakes(ditto: tuple[Config, Path], tmp_path: Path) -> None:
    folder = ditto[1]
    (tmp_path / "x.csv").write_text("b,a\n1,2\n3,-4\n")  # no label is needed, in any order
    (tmp_path / "c.csv").write_text("a\n1\n")
    np.savez(tmp_path / "x.npz", x=np.array([[2, 1], [-4, 3]], dtype=np.float32))
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 3), dtype=np.float32))
    np.savez(tmp_path / "y.npz", y=np.zeros(2))
    tables = []
    for file in ("x.csv", "x.npz"):
        result = invoke("predict", folder, "--client", "bob", "--input", tmp_path / file)
        assert result.exit_code == 0, result.stderr
        assert "client bob: class (probability)" in result.stdout
        tables.append(result.stdout)
    assert tables[0] == tables[1]

    for arguments, line in (
        ((folder, "--client", "eve", "--input", tmp_path / "x.csv"), "--client: got 'eve'"),
        ((tmp_path, "--client", "bob", "--input", tmp_path / "x.csv"), "RUN: got "),
        ((folder, "--client", "bob", "--input", tmp_path / "no.csv"), "--input: got "),
        ((folder, "--client", "bob", "--input", tmp_path / "c.csv"), "data.columns.features: got"),
        (
            (folder, "--client", "bob", "--input", tmp_path / "wide.npz"),
            f"{tmp_path}/wide.npz: got",
        ),
        ((folder, "--client", "bob", "--input", tmp_path / "y.npz"), f"{tmp_path}/y.npz: got y"),
    ):
        result = invoke("predict", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {line}") and result.stderr.count("\n") == 1
        assert result.stdout == ""


def test_a_run_without_saved_models(run: Run) -> None:
    _, folder = run("fedavg", "evaluation.adapters=false", "rounds=1")
    with pytest.raises(
        ConfigError, match=r"takes a run that has been evaluated, with evaluation\.adapters"
    ):
        FinishedRun(folder)


def test_a_global_model_that_cannot_be_read_is_one_line(run: Run) -> None:
    _, folder = run("fedavg", "rounds=1")
    (folder / "global.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as the global model"):
        FinishedRun(folder).predict("ann", torch.zeros(1, 2))
    (folder / "global.safetensors").unlink()
    found = FinishedRun(folder).predict("ann", torch.zeros(1, 2))
    assert list(found.scores) == ["personal"] and found.gate is None


def test_a_folder_of_runs_stands_for_the_newest(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name / "config.yaml", (1000 - age, 1000 - age))
    assert find_run(tmp_path) == (tmp_path / "new").resolve()
    assert find_run(tmp_path / "old") == (tmp_path / "old").resolve()
    with pytest.raises(ConfigError, match="takes the folder of a run, or one that holds runs"):
        find_run(tmp_path / "new" / "deeper")


def test_export_writes_a_new_folder_alone(ditto: tuple[Config, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("export", ditto[1], "--client", "0", "--out", out)
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["client"] == "4" and manifest["round"] == 3
    assert manifest["needs"]["base"] == "base.safetensors" and (out / "base.safetensors").exists()
    again = invoke("export", ditto[1], "--client", "0", "--out", out)
    assert again.exit_code == 2
    assert again.stderr.startswith("error: --out: got ") and again.stderr.count("\n") == 1


TEXTS = ["the cat sat", "a dog ran home", "the old red hat", "my cat ran away to sea", "a mat"]

ELSEWHERE = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, base, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
model = PeftModel.from_pretrained(model, folder).eval()
tokens = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**tokens).logits.tolist()))
assert "fedpers" not in sys.modules
"""


@pytest.mark.slow
def test_an_exported_model_gives_the_runs_predictions_elsewhere(
    run: Run, tiny_bert: str, tmp_path: Path
) -> None:
    """From a run on texts, through a csv file, to a process without this package."""
    rng, words = np.random.default_rng(0), ["cat", "dog", "mat", "hat", "sea", "home", "old"]
    lines = ["text,label,who"]
    for k in range(90):
        chosen = rng.choice(words, 4)
        lines.append(f"{' '.join(chosen)},{int('cat' in chosen)},{CLIENTS[k % 3]}")
    (tmp_path / "texts.csv").write_text("\n".join(lines) + "\n")
    config, folder = run(
        "ditto",
        *(f"data.path={tmp_path / 'texts.csv'}", "data.columns.features=[]"),
        *("data.columns.text=[text]", f"model.name={tiny_bert}", "model.standardise=true"),
    )
    (tmp_path / "new.csv").write_text("\n".join(["text", *TEXTS]) + "\n")
    finished = FinishedRun(folder)
    x = read_inputs(tmp_path / "new.csv", config, finished.data.signature)
    expected: Tensor = finished.predict("bob", x).scores["personal"]
    check(config, folder)

    out = tmp_path / "out"
    assert invoke("export", folder, "--client", "bob", "--out", out).exit_code == 0
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    base = tiny_bert.removeprefix("hf:")
    command = [sys.executable, "-c", ELSEWHERE, str(out), base, json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits = torch.tensor(json.loads(done.stdout))
    assert expected.std() > 0.01
    assert torch.allclose(logits, expected, atol=1e-5)
