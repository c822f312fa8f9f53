import json
from collections.abc import Mapping, Sequence

import pytest
from rich.console import Console

from fedpers.config import Config, load_config
from fedpers.evaluation.report import build_report, privacy_figures, report_table
from fedpers.evaluation.results import ClientResult
from fedpers.tasks.counts import Counts

VALIDATION = load_config(None, ["evaluation.select=validation"])


def result(client: str, val: int, test: int, n_val: int = 4) -> ClientResult:
    """The personal model has ``val`` of n_val and ``test`` of 10 right, the global one 5 of 10."""
    fixed, broke = max(0, test - 5), max(0, 5 - test)
    counts = Counts(10, {"global": 5, "personal": test}, {"personal": fixed}, {"personal": broke})
    return ClientResult(client, 20, Counts(n_val, {"personal": val}, {}, {}), counts)


def report(
    evaluations: Mapping[int, Sequence[ClientResult]], config: Config | None = None
) -> dict[str, object]:
    return build_report(
        run_id="r",
        config=config or Config(),
        evaluations=evaluations,
        communication={"total_bytes": 1200},
        seconds={"total": 3.5},
    )


# Round 5 is best on validation (3/4 against 2/4), round 10 best on test (9/10 against 6/10).
TWO = {
    5: [result("a", 3, 6), result("b", 3, 6)],
    10: [result("a", 2, 9), result("b", 2, 9)],
    15: [result("a", 1, 7), result("b", 1, 7)],
}


def test_fields_and_figures() -> None:
    got = report(TWO)
    assert set(got) == {
        *("run_id", "data", "strategy", "seed", "rounds", "clients", "selected_round", "scored"),
        *("accuracy", "gain_over_global", "gain_over_local", "gain_over_base", "breakage_rate"),
        "fix_rate",
        *("harmed_share", "out_of_client", "gated", "cold_start", "privacy", "encryption"),
        *("macro_f1", "auc", "ece", "ece_pooled", "collapse", "gini", "gate", "task"),
        *("communication", "seconds", "inputs"),
        "environment",
    }
    # These were counted without detail.
    assert got["macro_f1"] == dict.fromkeys(("personal", "global", "gated", "local"))
    # Without a global model on validation the gate falls back to it: 5 of 10 right, not 7.
    gate = {"coverage_clients": 0, "coverage_examples": 0, "oracle_gap": pytest.approx(0.2)}
    assert got["gate"] == gate
    assert (got["run_id"], got["strategy"], got["seed"]) == ("r", "ditto", 0)
    assert (got["rounds"], got["clients"], got["selected_round"]) == (20, 2, 15)
    assert got["scored"] == {
        "split": "test",
        "select": "last",
        "moment": None,
        "clients": 2,
        "examples": 20,
    }
    # The last evaluation: 7 of 10 personal and 5 of 10 global for both clients.
    accuracy = got["accuracy"]
    assert isinstance(accuracy, dict)
    flat = {"std": 0.0, "mean": 0.7, "weighted": 0.7, "worst_decile": 0.7, "min": 0.7, "max": 0.7}
    assert accuracy["personal"] == pytest.approx(flat)
    assert accuracy["global"]["mean"] == 0.5
    assert accuracy["gated"] is None and accuracy["local"] is None
    assert got["gain_over_global"] == pytest.approx(0.2) and got["gain_over_local"] is None
    assert got["fix_rate"] == pytest.approx(0.4)  # 2 of the 5 wrong ones
    assert got["breakage_rate"] == 0.0 and got["harmed_share"] == 0.0
    assert got["out_of_client"] == {"personal": None, "global": None}
    assert got["communication"] == {
        "uplink_bytes_per_client_round": None,
        "downlink_bytes_per_client_round": None,
        "total_bytes": 1200,
    }
    names = ("round_median", "train", "combine", "encrypt", "decrypt", "evaluate")
    assert got["seconds"] == {"total": 3.5, **dict.fromkeys(names)}


def test_later_issues_are_null_and_the_rest_is_json() -> None:
    got = report(TWO)
    privacy, encryption, environment = got["privacy"], got["encryption"], got["environment"]
    assert isinstance(privacy, dict) and isinstance(encryption, dict)
    assert privacy.pop("enabled") is False and encryption.pop("enabled") is False
    assert set(privacy) == {
        *("unit", "mechanism", "epsilon_max", "epsilon_mean", "delta", "mu", "neighbours"),
        *("accountant", "noise_multiplier", "max_grad_norm"),
    }
    assert set(encryption) == {"scheme", "bytes_per_parameter", "security_bits"}
    assert {*privacy.values(), *encryption.values()} == {None}
    assert isinstance(environment, dict)
    assert environment["cores"] >= 1 and isinstance(environment["device"], str)
    assert environment["versions"]["torch"].startswith("2.")
    json.dumps(got, allow_nan=False)


def test_validation_selects_the_round_and_test_never_does() -> None:
    got = report(TWO, VALIDATION)
    assert got["selected_round"] == 5
    assert isinstance(got["scored"], dict) and got["scored"]["select"] == "validation"
    assert isinstance(got["accuracy"], dict) and got["accuracy"]["personal"]["mean"] == 0.6


def test_validation_compares_rounds_on_the_same_clients() -> None:
    # Over all who answered round 2 is better: 1 against (1 + 1/4) / 2. But the weak client b
    # failed in it, and on a alone round 1 is as good, and earlier.
    rounds = {1: [result("a", 4, 6), result("b", 1, 6)], 2: [result("a", 4, 6)]}
    got = report(rounds, VALIDATION)
    assert got["selected_round"] == 1 and got["clients"] == 2


def test_validation_without_examples_falls_back_to_the_last_round_and_says_so() -> None:
    got = report({1: [result("a", 0, 9, n_val=0)], 2: [result("a", 0, 6, n_val=0)]}, VALIDATION)
    assert got["selected_round"] == 2
    assert isinstance(got["scored"], dict) and got["scored"]["select"] == "last"


def test_a_last_round_in_which_all_clients_failed_is_not_reported() -> None:
    assert report({1: [result("a", 1, 6)], 2: []})["selected_round"] == 1


def test_without_an_evaluation_all_figures_are_null() -> None:
    got = report({})
    assert got["selected_round"] is None and got["clients"] == 0
    assert got["accuracy"] == dict.fromkeys(("personal", "global", "gated", "local"))
    assert got["harmed_share"] is None


def test_an_unknown_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds: got trian, takes total, "):
        build_report(
            run_id="r", config=Config(), evaluations=TWO, communication={}, seconds={"trian": 1.0}
        )


def test_table_shows_percent_and_only_the_modes_there_are() -> None:
    # Personal 6/10 and 9/10: mean and weighted 75, worst 60, spread 15.
    rounds = {3: [result("a", 1, 6), result("b", 1, 9)]}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report_table(report(rounds)))
    text = capture.get()
    row = next(line for line in text.splitlines() if "personal" in line)
    assert row.replace("│", " ").split() == [
        "personal",
        "75.0",
        "75.0",
        "60.0",
        "15.0",
        "60.0",
        "90.0",
    ]
    assert "worst decile" in text and "round 3" in text and "global" in text
    assert "gated" not in text and "local" not in text.replace("global", "")


def test_the_device_is_what_the_nodes_computed_on() -> None:
    # Not what the machine has: by default nodes use no GPU.
    environment = report(TWO)["environment"]
    assert isinstance(environment, dict) and environment["device"] == "cpu"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ((), ["the public examples", "personal models", "results and losses"]),
        (("data.public_fraction=0",), ["personal models", "results and losses"]),
        (("evaluation.diagnostics=false",), ["the public examples", "personal models"]),
        (("data.partition.name=devices",), ["the public examples", "personal models"]),
        (
            ("data.partition.name=natural", "data.public_clients=2"),
            ["all examples of 2 clients", "personal models", "results and losses"],
        ),
        (
            (
                *("data.partition.name=natural", "data.public_from_clients=true"),
                *("data.public_fraction=0.1", "evaluation.diagnostics=false"),
            ),
            ["10 % of the clients' examples, which are public", "personal models"],
        ),
    ],
)
def test_what_the_epsilon_says_nothing_of_is_named(
    settings: tuple[str, ...], named: list[str]
) -> None:
    config = load_config(None, ["privacy.enabled=true", *settings])
    told = privacy_figures(config, {})["not_covered"]
    assert len(told) == len(named)
    assert all(line.startswith(start) for line, start in zip(told, named, strict=True))
