from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpers.config import Config, config_from_json, load_config, params_of, setting
from fedpers.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rouns=3", "rouns: got 3, takes one of the keys: seed, rounds,"),
        ("data.partition.alfa=3", "data.partition.alfa: got 3, takes one of the keys: name, alpha"),
        ("rounds=x", "rounds: got 'x', takes an integer >= 1"),
        ("rounds=null", "rounds: got None, takes an integer >= 1"),
        ("seed=1.5", "seed: got 1.5, takes an integer >= 0"),
        ("data.partition.alpha=-1", "data.partition.alpha: got -1.0, takes a number > 0"),
        ("data.partition.alpha=0", "data.partition.alpha: got 0.0, takes a number > 0"),
        ("data.test_fraction=1", "data.test_fraction: got 1.0, takes a number > 0 and < 1"),
        ("data.clients=0", "data.clients: got 0, takes an integer >= 1"),
        ("data.split=foo", "data.split: got 'foo', takes one of random, blocks, group"),
        ("data.columns.features=3", "data.columns.features: got 3, takes a list"),
        (
            "model=4",
            "model: got 4, takes settings (name, head, dtype, lora, pretrain, standardise, whiten, "
            "cache)",
        ),
        ("model.lora.rank=0", "model.lora.rank: got 0, takes an integer >= 1"),
        ("training.lr=.nan", "training.lr: got nan, takes a number > 0"),
        ("privacy.delta=abc", "privacy.delta: got 'abc', takes a number or null > 0 and < 1"),
        ("rounds", "override: got 'rounds', takes key=value"),
        ("rounds=[", "override: got 'rounds=[', takes key=value"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_file_then_overrides_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 7\ndata: {partition: {alpha: 0.5}}\nmodel: {lora: {rank: 2}}\n")
    config = load_config(path, ["rounds=9", "strategy.params.mu=0.5"])
    assert config.rounds == 9
    assert config.data.partition.alpha == 0.5
    assert config.data.partition.name == Config().data.partition.name
    assert config.model.lora is not None
    assert config.model.lora.rank == 2
    assert config.strategy.params == {"mu": 0.5}
    assert load_config(path, ["model.lora=null"]).model.lora is None


def test_settings_survive_json() -> None:
    config = load_config(None, ["model.lora=null", "strategy.params.mu=1", "privacy.delta=1e-5"])
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["rounds: [", "- 1\n- 2\n", "rounds: 1\nrounds: 2\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="config"):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")


@dataclass
class Params:
    mu: float = setting(1.0, above=0)
    width: int | None = setting(None, least=1)


def test_params_of_a_method() -> None:
    assert params_of(Params, {"mu": 2}) == Params(mu=2.0)
    assert params_of(Params, {"other": 2}, also=["other"]) == Params()
    with pytest.raises(ConfigError, match=r"strategy\.params\.mu: got 0\.0, takes a number > 0"):
        params_of(Params, {"mu": 0})
    with pytest.raises(ConfigError, match=r"strategy\.params\.nu: got 1, takes one of: mu, width"):
        params_of(Params, {"nu": 1})
    with pytest.raises(ConfigError, match=r"strategy\.params\.mu: got 'x', takes a number"):
        params_of(Params, {"mu": "x"})


def test_devices_keep_their_diagnostics_unless_they_are_asked_for() -> None:
    devices = ["data.partition.name=devices"]
    assert load_config().evaluation.diagnostics is True
    assert load_config(None, devices).evaluation.diagnostics is False
    for asked in (True, False):
        given = [f"evaluation.diagnostics={str(asked).lower()}"]
        for settings in (given, [*devices, *given]):
            config = load_config(None, settings)
            assert config.evaluation.diagnostics is asked
            assert config_from_json(config.to_json()).evaluation.diagnostics is asked
    # What a run did is in its config.yaml, whatever the default is by then.
    assert "diagnostics: false" in load_config(None, devices).to_yaml()


def test_the_accountant_of_earlier_settings_is_read_and_does_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Runs' folders hold it.
    path = tmp_path / "config.yaml"
    path.write_text("privacy: {enabled: true, accountant: rdp}\n")
    assert load_config(path).privacy == load_config(None, ["privacy.enabled=true"]).privacy
    line = "privacy.accountant does nothing any more: epsilon is exact; leave it out"
    assert caplog.messages == [line]
    load_config(None, ["privacy.accountant=prv"])
    assert caplog.messages == [line] * 2
    with pytest.raises(ConfigError, match=r"^privacy: got 5, takes settings"):
        load_config(None, ["privacy=5"])
