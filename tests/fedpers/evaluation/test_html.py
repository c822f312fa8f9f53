import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedpers.config import load_config
from fedpers.errors import ConfigError
from fedpers.evaluation import ClientResult, RunFolder, build_report, gated, write_html
from fedpers.evaluation.grids import png
from fedpers.evaluation.run_files import number
from fedpers.tasks import Counts
from simulations.commands.cli import app

VOID = {"meta", "img"}
HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """A page's texts and tags; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def result(client: str, models: dict[str, str], labels: str = "0000000011") -> ClientResult:
    """A client whose models answer what the digits say."""

    def counts(times: int) -> Counts:
        y = torch.tensor([int(c) for c in labels * times])
        ids = {m: torch.tensor([int(c) for c in answers * times]) for m, answers in models.items()}
        return Counts.of_logits(y, {m: 2.0 * torch.eye(3)[x] for m, x in ids.items()})

    return ClientResult(client, 30, counts(1), counts(2), None)


RIGHT, HALF, WRONG = "0000000011", "0000011111", "1111111100"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A run's folder with these results in round 2, and changes to its report."""

    def made(results: list[ClientResult], *settings: str, **changes: Any) -> Path:
        config = load_config(None, ["rounds=2", *settings])
        folder = RunFolder(tmp_path / "run", config)
        results = gated(results)
        for server_round in (1, 2):
            line = {"round": server_round, "loss": 1.5 / server_round, "personal": 0.5}
            seconds = {"train": 1.25, "combine": 0.5, "evaluate": 0.25}
            more = {"uplink_bytes": 1500, "downlink_bytes": 700, "seconds": seconds}
            folder.log_round({**line, "global": 0.25, "answered": 3, **more})
            folder.log_clients(server_round, results, {"lost": "no memory"})
        report = build_report(
            run_id="the-run",
            config=config,
            evaluations={2: results} if results else {},
            communication={"uplink_bytes_per_client_round": 500, "total_bytes": 4400},
            seconds={"total": 5.0, "train": 2.5, "combine": 1.0, "evaluate": 0.5},
        )
        folder.write_report(report | changes)
        folder.close()
        return folder.path

    return made


def read(folder: Path) -> Page:
    path = write_html(folder)
    text = path.read_text(encoding="utf-8")
    assert path == folder / "report.html" and "http" not in text
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "nan" not in page.text.lower().split() and "None" not in page.text
    return page


def test_figures_and_words(make: Callable[..., Path]) -> None:
    # Of 20 test examples global has 14 right at each client; personal 20, 20, and 4 at "worse",
    # where it breaks 10 and fixes none: p = 1/1024.
    better = {"global": HALF, "personal": RIGHT, "local": HALF}
    worse = {"global": HALF, "personal": "1111111111", "local": HALF}
    page = read(make([result("a", better), result("b", better), result("worse", worse)]))
    mean = (20 + 20 + 4) / 60
    assert f"right on {100 * mean:.1f} %" in page.text
    assert "The global model gives 70.0 %: personalisation adds 3.3 points" in page.text
    assert "alone gives 70.0 %: the federation adds 3.3 points" in page.text
    told = "Of 3 clients, 2 did better with the personal model than with the global one and 1 worse"
    assert told in page.text
    assert "counted as harmed: worse." in page.text and "1 of 3" in page.text
    for text in ("macro-F1", "ECE", "AUC", "Each client", "By round", "Labels of each client"):
        assert text in page.text
    assert "+30.0" in page.text and "−50.0" in page.text  # points at a and at worse
    assert "3.0 kB" in page.text and "1.4 kB" in page.text and "2.5 s" in page.text
    assert "1 client failed, 2 times in all: lost." in page.text
    assert "rounds: 2" in page.text  # the settings
    assert page.tags.count("h1") == 1 and "table" in page.tags and "svg" in page.tags


def test_text_of_files_is_escaped(make: Callable[..., Path]) -> None:
    results = [result(HOSTILE, {"global": HALF, "personal": RIGHT})]
    notes = {"enabled": True, "notes": [HOSTILE], "per_client": {HOSTILE: 1.0}, "unit": HOSTILE}
    encryption = {"enabled": True, "scheme": HOSTILE, HOSTILE: 1}
    folder = make(results, strategy=HOSTILE, privacy=notes, encryption=encryption)
    with (folder / "config.yaml").open("a") as file:
        file.write(f"# {HOSTILE}\n")
    (folder / "audit.json").write_text(json.dumps({"membership": {HOSTILE: 1}}))
    page = read(folder)
    assert page.text.count("<script>") >= 7


def test_without_a_global_model_local_is_the_base(make: Callable[..., Path]) -> None:
    page = read(make([result(c, {"personal": RIGHT, "local": HALF}) for c in "ab"]))
    assert "from the local to the personal model" in page.text
    assert "Of 2 clients" not in page.text and "global model gives" not in page.text


@pytest.mark.parametrize("mode", ["personal", "global", "local"])
def test_one_client_with_one_model(make: Callable[..., Path], mode: str) -> None:
    page = read(make([result("only", {mode: RIGHT})]))
    assert f"with the {mode} model" in page.text and "100.0" in page.text


def test_results_held_back(make: Callable[..., Path]) -> None:
    privacy = {"enabled": True, "epsilon_max": 3.241, "delta": 1e-5, "unit": "example"}
    privacy |= {"mu": 0.901, "neighbours": "one example", "per_client": {"a": 3.241, "b": 1.5}}
    privacy["not_covered"] = ["the public examples", "personal models"]
    page = read(make([], "evaluation.diagnostics=false", privacy=privacy))
    assert "keep their results to themselves" in page.text
    # Rounded up.
    assert "epsilon 3.25 at delta 1e-05, mu 0.91 of Gaussian DP" in page.text
    assert "epsilon max 3.242" in page.text and "1.50" in page.text
    assert "What may differ between neighbours: one example." in page.text
    assert "That says nothing of the public examples; nor of personal models." in page.text
    assert "Each client" not in page.text and "3 clients" in page.text


def test_examples_without_detail_and_clients_without_examples(make: Callable[..., Path]) -> None:
    old = ClientResult("old", 3, Counts(0, {}, {}, {}), Counts(4, {"personal": 3}, {}, {}))
    none = ClientResult("none", 3, Counts(0, {}, {}, {}), Counts(0, {}, {}, {}))
    page = read(make([old, none]))
    assert "75.0" in page.text and "Labels of each client" not in page.text


def test_nulls_and_nonsense_in_the_files(make: Callable[..., Path]) -> None:
    folder = make([result("a", {"global": HALF, "personal": RIGHT})], similarity=[[1, 2], [3]])
    report = json.loads((folder / "report.json").read_text())
    cut = {name: None for name in report if name != "accuracy"}
    accuracy = {"personal": {"mean": 0.5, "std": None}, "global": None, "gated": 3, "local": "x"}
    (folder / "report.json").write_text(json.dumps(cut | {"accuracy": accuracy}))
    (folder / "rounds.jsonl").write_text('{"round": 1, "loss": null, "personal": null}\n[]\n{"a')
    (folder / "clients.jsonl").write_text('{"round": null, "client": "a", "train": -1}\n\nx\n')
    (folder / "config.yaml").write_text("a: [")
    (folder / "audit.json").write_text("[1]")
    (folder / "inversion.png").write_text("no picture")
    assert "50.0" in read(folder).text
    for name in ("rounds.jsonl", "clients.jsonl", "config.yaml"):
        (folder / name).unlink()
    assert "50.0" in read(folder).text


@pytest.mark.parametrize("count", [200, 410])
def test_many_clients(make: Callable[..., Path], count: int) -> None:
    three = [result("x", {"global": HALF, "personal": p}) for p in (RIGHT, HALF, WRONG)]
    names = [f"client-{k}" for k in range(count)]
    spent = {name: 1 + k / count for k, name in enumerate(names)}
    privacy = {"enabled": True, "per_client": spent}
    results = [replace(three[k % 3], client=name) for k, name in enumerate(names)]
    folder = make(results, privacy=privacy, similarity=[[0.5] * count] * count)
    page = read(folder)
    assert f"Of {count} clients" in page.text and len(page.addresses) == 2
    assert (folder / "report.html").stat().st_size < 400_000
    if count > 400:
        assert "400 of 410 clients" in page.text


def test_audit_similarity_and_encryption(make: Callable[..., Path]) -> None:
    folder = make(
        [result(c, {"global": HALF, "personal": RIGHT}) for c in "ab"],
        similarity=[[1.0, 0.25], [0.25, None]],
        encryption={"enabled": True, "scheme": "ckks", "security_bits": 128},
    )
    lost = {"loss": {"auc": 0.625}, "lira": {"auc": None}}
    audit = {
        "epsilon": {"claimed": 1.0, "at_least": 4.05},
        "membership": {"off": {"global": lost}, "on": {"global": {"loss": {"auc": 0.5}}}},
        "inversion": {"off": [30.0, 34.0], "on": [4.0]},
    }
    (folder / "audit.json").write_text(json.dumps(audit))
    (folder / "inversion.png").write_bytes(png([[0.0, 1.0]]))
    page = read(folder)
    assert "at least 4.05. The claim is refuted." in page.text
    assert "0.625" in page.text and "32.0 dB with privacy off, 4.0 dB" in page.text
    assert "ckks" in page.text and "Similarity of the clients" in page.text
    assert len(page.addresses) == 2


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"RUN: got .* takes the folder of a finished run"):
        write_html(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ConfigError):
        write_html(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_command_rebuilds_the_page_and_prints_the_table(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make([result("a", {"global": HALF, "personal": RIGHT})])
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0 and "personal" in done.output and "100.0" in done.output
    assert (folder / "report.html").exists()
    failed = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert failed.exit_code == 2 and failed.output.count("\n") == 1
    assert failed.output.startswith("error: RUN: ")


def test_a_png_that_others_can_read() -> None:
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(png([[0.0, 0.5, 1.0], [2.0, -1.0, 0.2]])))
    assert image.size == (3, 2) and image.mode == "RGBA"
    assert list(image.getchannel("A").get_flattened_data()) == [0, 128, 255, 255, 0, 51]


@pytest.mark.parametrize("value", [None, True, "3", float("nan"), float("inf"), 10**400, []])
def test_what_is_no_number(value: object) -> None:
    assert number({"a": value}, "a") is None and number({"a": {"b": 2}}, "a", "b") == 2.0


def test_classes_by_their_names(make: Callable[..., Path]) -> None:
    one = result("a", {"global": HALF, "personal": RIGHT})
    task = {"name": "classification", "names": ["cat", "<em>dog</em>", "emu"], "unit": ""}
    page = read(make([one], task=task))
    assert "3 classes: cat, <em>dog</em>, emu" in page.text and "em" not in page.tags
    grid = page.text[page.text.index("Labels of each client") :]
    assert grid.index("cat") < grid.index("<em>dog</em>") < grid.index("emu")
