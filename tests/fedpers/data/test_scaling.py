"""Features on a scale that suits models: by public rows, declared ranges, or clients' sums."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.config import load_config
from fedpers.data import FederatedData, Schema, device_data, load_data
from fedpers.data.scaling import Scaling
from fedpers.errors import DataError, FedpersError

NAN = float("nan")
CLIENTS = ["data.partition.name=natural", "data.columns.client=who"]


def load(folder: Path, *overrides: str, **columns: Any) -> FederatedData:
    path = folder / "t.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    features = "data.columns.features=[a,b]"
    return load_data(
        load_config(None, ["data.name=csv", f"data.path={path}", features, *CLIENTS, *overrides])
    )


def table(n: int = 40, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    a, b = 5e6 + 1e6 * rng.standard_normal(n), rng.standard_normal(n)
    rows = {"a": a, "b": b, "label": np.arange(n) % 2, "who": np.arange(n) // 2 % 4}
    return {**rows, **more}


def test_by_hand() -> None:
    scaling = Scaling("public", 3, (1.0, 0.0), (2.0, 1.0), (3.0, -1.0), (1,))
    x = torch.tensor([[5.0, 2.0], [NAN, NAN], [1e6, float("-inf")]])
    assert scaling.apply(x).tolist() == [[2, 2, 0], [1, -1, 1], [10, -10, 0]]
    assert Scaling().apply(x) is x


def test_public_rows_say_what_is_standard_and_every_client_has_the_same(tmp_path: Path) -> None:
    data = load(tmp_path, **table())
    public = data.public.x.double()
    assert public.mean(0).abs().max() < 1e-6
    assert (public.std(0, correction=0) - 1).abs().max() < 1e-6
    assert data.scaling.how == "public" and data.scaling.rows == len(public) == 8
    assert data.scaling.about == "features: standardised by 8 public rows"
    raw = torch.tensor(pd.read_csv(tmp_path / "t.csv")[["a", "b"]].to_numpy(np.float32))
    scaled = {tuple(row) for row in data.scaling.apply(raw).tolist()}
    assert {tuple(row) for row in data.client("0").test.x.tolist()} <= scaled


def test_sums_are_of_the_clients_training_rows_alone(tmp_path: Path) -> None:
    wanted = ("data.scale=sums", "data.public_fraction=0", "data.holdout_clients=1")
    data = load(tmp_path, *wanted, **table())
    train = torch.cat([data.client(client).train.x for client in data.clients]).double()
    assert data.scaling.rows == len(train)
    assert train.mean(0).abs().max() < 1e-6
    assert (train.std(0, correction=0) - 1).abs().max() < 1e-6


def test_declared_ranges_become_minus_one_to_one(tmp_path: Path) -> None:
    ranges = "data.columns.ranges={a: [0, 10], b: [-1, 1]}"
    values = {"a": [0, 5, 10, 99] * 10, "b": [-1, 0, 1, -9] * 10}
    data = load(tmp_path, "data.scale=declared", ranges, **table(**values))
    found = {tuple(row) for row in data.public.x.tolist()}
    assert found <= {(-1, -1), (0, 0), (1, 1), (1, -1)}
    assert data.scaling.about == "features: brought from their declared ranges to -1..1"
    auto = load(tmp_path, "data.public_fraction=0", ranges, **table())
    assert auto.scaling.how == "declared"


def test_a_table_without_public_rows_is_told_so(tmp_path: Path) -> None:
    data = load(tmp_path, "data.public_fraction=0", **table())
    assert data.scaling == Scaling()
    assert "for there are no public rows; set data.scale=sums" in data.remark


def test_each_clients_own_mean_is_taken_off_where_clients_measure_differently(
    tmp_path: Path,
) -> None:
    who, rng = np.repeat(np.arange(4), 10), np.random.default_rng(1)
    a = 1000 * who + rng.standard_normal(40)
    wanted = ("data.public_fraction=0", "data.scale=sums", "data.centre=true")
    data = load(tmp_path, *wanted, **table(a=a, who=who))
    assert data.scaling.about.endswith("training rows; around each client’s own mean")
    for client in data.clients:
        x = data.client(client).train.x
        assert x.mean(0).abs().max() < 1e-4 and 0.3 < float(x[:, 0].std()) < 3
        test = data.client(client).test.x
        assert test[:, 0].abs().max() < 5  # by the mean of the training rows
    # A newcomer, and a device, have their own too; what others are like does not matter.
    held = load(tmp_path, *wanted, "data.holdout_clients=1", **table(a=a, who=who))
    assert held.client(held.held_out[0]).train.x.mean(0).abs().max() < 1e-4
    again = Scaling.from_json(json.loads(json.dumps(asdict(data.scaling))))
    assert again == data.scaling and again.centred


def test_by_hand_around_ones_own_mean() -> None:
    all_ = Scaling("sums", 9, (1.0, 5.0), (2.0, 1.0), (1.0, 5.0), centred=True)
    own = all_.of_client(torch.tensor([[100.0, NAN], [104.0, NAN], [NAN, NAN]]))
    assert own.mean == (102.0, 5.0)  # nothing of the second column: the mean of all
    assert own.apply(torch.tensor([[104.0, NAN], [NAN, 6.0]])).tolist() == [[1, 0], [0, 1]]
    far = all_.of_client(torch.tensor([[100.0, 0.0]] * 9 + [[1e9, 0.0]]))
    assert 100 <= far.mean[0] <= 102  # one outlier is no offset
    assert Scaling("sums", 9, (1.0,), (2.0,), (1.0,)).of_client(torch.zeros(3, 1)).mean == (1.0,)


def test_one_outlier_does_not_squash_the_rest(tmp_path: Path) -> None:
    a = np.random.default_rng(0).standard_normal(40)
    a[7] = 1e9
    data = load(tmp_path, "data.public_fraction=0", "data.scale=sums", **table(a=a))
    x = torch.cat([data.client(client).train.x for client in data.clients])
    assert float(x[:, 0].quantile(0.9) - x[:, 0].quantile(0.1)) > 1


def test_columns_that_do_not_vary_are_zero_and_not_huge(tmp_path: Path) -> None:
    data = load(tmp_path, **table(b=[123456.789] * 40))
    assert data.public.x[:, 1].abs().max() == 0


@pytest.mark.parametrize(("rule", "value"), [("mean", 4.0), ("median", 2.0), ("indicator", 4.0)])
@pytest.mark.parametrize("scale", ["public", "none"])
def test_what_is_missing_is_as_the_rule_says(
    tmp_path: Path, rule: str, value: float, scale: str
) -> None:
    b = [1.0, 2.0, 9.0, ""] * 10
    rows = table(b=b)
    public = {"data.partition.name=devices"}  # all rows are public
    data = load(tmp_path, *public, f"data.missing={rule}", f"data.scale={scale}", **rows)
    x, missing = data.public.x, torch.arange(40) % 4 == 3
    spread = data.scaling.spread[1] if scale == "public" else 1
    mean = data.scaling.mean[1] if scale == "public" else 0
    assert x[missing][:, 1].unique().tolist() == pytest.approx([(value - mean) / spread])
    assert x.shape[1] == data.signature.shape[0] == (3 if rule == "indicator" else 2)
    if rule == "indicator":
        assert torch.equal(x[:, 2], missing.float())
        assert data.scaling.marked == (1,)


def test_categories_are_ones_and_zeros_and_then_on_the_scale_of_all_others(tmp_path: Path) -> None:
    kinds = ["red", "07", "", "blue"] * 10
    categories = 'data.columns.categories={b: [blue, "07", red]}'
    devices = ["data.partition.name=devices"]
    data = load(tmp_path, *devices, categories, **table(b=kinds))
    rows = torch.tensor([[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    given = load(tmp_path, "data.scale=none", *devices, categories, **table(b=kinds)).public.x
    assert torch.equal(given[:4, 1:], rows.float())
    scaled = (rows - 0.25) / (0.25 * 0.75) ** 0.5  # a rare one is as strong as a frequent one
    torch.testing.assert_close(data.public.x[:4, 1:], scaled)
    with pytest.raises(DataError, match=r"b: got 'red' in row 0 .* takes one of blue, 07"):
        load(tmp_path, 'data.columns.categories={b: [blue, "07"]}', **table(b=kinds))


def test_under_privacy_no_error_tells_of_a_cell(tmp_path: Path) -> None:
    private = ("privacy.enabled=true", "data.public_from_clients=true")
    odd = table(a=["many", *range(39)], b=["green", *["red"] * 39])
    data = load(tmp_path, *private, "data.columns.categories={b: [red]}", **odd)
    train = torch.cat([data.client(client).train.x for client in data.clients])
    assert bool(torch.isfinite(train).all())


def test_a_device_scales_as_its_server_does(tmp_path: Path) -> None:
    data = load(tmp_path, "data.partition.name=devices", "data.missing=indicator", **table())
    schema = Schema.from_json(data.schema.to_json())
    assert schema == data.schema and schema.scaling.how == "public"
    columns = "data.columns.features=[a,b]"
    config = load_config(None, ["data.missing=indicator", columns])
    own = device_data(config, "d", tmp_path / "t.csv", schema)
    assert torch.equal(
        own.client("d").train.x.sort(0).values,
        data.scaling.apply(
            torch.tensor(pd.read_csv(tmp_path / "t.csv")[["a", "b"]].to_numpy(np.float32))
        )[own._splits["d"].train]
        .sort(0)
        .values,
    )


GOOD = asdict(Scaling("public", 5, (0.0,), (1.0,), (0.0,)))


@pytest.mark.parametrize(
    "change",
    [
        {"how": "other"},
        {"mean": [NAN]},
        {"mean": ["x"]},
        {"mean": [0.0, 1.0]},
        {"spread": [0.0]},
        {"spread": [-1.0]},
        {"fill": None},
        {"marked": [1]},
        {"marked": [0, 0]},
        {"most": -1.0},
        {"rows": "many"},
    ],
)
def test_a_server_cannot_make_a_device_scale_by_nonsense(change: dict[str, Any]) -> None:
    assert Scaling.from_json(json.loads(json.dumps(GOOD))).rows == 5
    with pytest.raises(DataError, match="scaling: "):
        Scaling.from_json({**GOOD, **change})


@given(
    st.lists(
        st.one_of(st.floats(width=32), st.just(NAN), st.just(float("inf"))), min_size=1, max_size=8
    )
)
def test_whatever_comes_what_a_model_reads_is_finite_and_near(values: list[float]) -> None:
    scaling = Scaling("public", 5, (1.0,), (1e-3,), (0.5,), (0,))
    scaled = scaling.apply(torch.tensor(values)[:, None])
    assert bool((scaled.abs() <= scaling.most).all())
    none = replace(scaling, how="none")
    assert not bool(torch.isnan(none.apply(torch.tensor(values)[:, None])).any())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.public_fraction=0", "data.scale=public"], "data.scale: got 'public', takes none"),
        (["data.scale=sums", "privacy.enabled=true", "data.public_fraction=0"], "data.scale: got"),
        (["data.scale=sums", "encryption.enabled=true"], "data.scale: got 'sums', takes public"),
        (["data.scale=sums", "data.partition.name=devices"], "data.scale: got 'sums'"),
        (["data.scale=sums", "data.missing=median"], "data.missing: got 'median'"),
        (["data.centre=true", "privacy.enabled=true"], "data.centre: got True, takes false with"),
        (["data.centre=true", "data.scale=declared"], "data.centre: got True, takes false with"),
        (["data.columns.dates={c: ISO8601}"], "data.columns.dates: got 'c'"),
        (["data.scale=declared"], "data.columns.ranges: got None, takes a range for each feature"),
        (["data.columns.ranges={a: [1, 0]}"], "data.columns.ranges.a: got "),
        (["data.columns.ranges={c: [0, 1]}"], "data.columns.ranges: got 'c'"),
        (["data.columns.categories={c: [x]}"], "data.columns.categories: got 'c'"),
        (["data.columns.categories={a: []}"], "data.columns.categories.a: got []"),
        (["data.columns.categories={a: [x, x]}"], "data.columns.categories.a: got "),
        (
            ["data.scale=none", "data.missing=mean", "data.public_fraction=0"],
            "data.missing: got 'mean', takes error where nothing says",
        ),
    ],
)
def test_what_cannot_be_done_or_protected_is_one_line(
    tmp_path: Path, overrides: list[str], line: str
) -> None:
    with pytest.raises(FedpersError) as caught:
        load(tmp_path, *overrides, **table())
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_images_and_signals_keep_what_they_have() -> None:
    assert load_data(load_config(None, ["data.name=digits"])).scaling == Scaling()
    assert load_data(load_config("configs/diabetes.yaml")).scaling == Scaling()
    with pytest.raises(FedpersError, match="takes auto or none for image data"):
        load_data(load_config(None, ["data.name=digits", "data.scale=public"]))
