import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpers.config import Config, load_config
from fedpers.data import Examples, FederatedData, Signature, Split, Table, load_data, load_table
from fedpers.errors import ConfigError, DataError, FedpersError


def load(*overrides: str) -> FederatedData:
    return load_data(load_config(None, overrides))


def test_digits_by_default() -> None:
    data = load()

    assert data.signature == Signature("image", (1, 8, 8)) and data.task.outputs == 10
    assert data.clients == [str(k) for k in range(20)]
    assert len(data.public) == 359
    x = data.public.x
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    owned = [len(side) for k in data.clients for side in vars(data.client(k)).values()]
    assert sum(owned) + 359 == 1797


def test_digits_are_those_of_sklearn() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    examples = load_table(load_config()).examples
    expected = (pixels.reshape(-1, 1, 8, 8) / 16 - 0.5) / 0.5
    assert np.array_equal(examples.x.numpy(), expected)
    assert np.array_equal(examples.y.numpy(), labels)


@pytest.mark.parametrize("clients", [20, 60, 200])
def test_strong_skew_works_down_to_a_quarter_of_the_mean(clients: int) -> None:
    data = load(f"data.clients={clients}", "data.partition.alpha=0.3")
    sizes = [sum(map(len, vars(data.client(k)).values())) for k in data.clients]
    # 1,438 examples are not public: a quarter of the mean is 17, 5 and 1.
    assert len(sizes) == clients and min(sizes) >= 1438 // (4 * clients)


def test_a_smallest_size_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.partition\.min_size: got 10, takes"):
        load("data.clients=60", "data.partition.min_size=10")


def test_skew_without_a_smallest_size_leaves_clients_empty() -> None:
    data = load("data.clients=200", "data.partition.min_size=0", "data.partition.alpha=0.01")
    empty = [data.client(k) for k in data.clients if data.size(k) == 0]
    assert len(data.clients) == 200 and empty
    assert empty[0].train.x.shape == (0, 1, 8, 8) and empty[0].test.y.shape == (0,)


def test_a_thousand_clients_are_cheap() -> None:
    load()  # imports
    started = time.perf_counter()
    data = load("data.clients=1000", "data.partition.name=iid")
    loaded = time.perf_counter()
    total = sum(len(data.client(client).train) for client in data.clients)
    ended = time.perf_counter()

    assert len(data.clients) == 1000 and total == sum(map(data.size, data.clients))
    assert loaded - started < 5
    assert ended - loaded < 0.5


def test_an_unknown_client_is_one_line() -> None:
    with pytest.raises(DataError, match="got '20', takes one of '0' to '19'"):
        load().client("20")


def test_federated_data_by_hand() -> None:
    table = Table("tabular", Examples(torch.arange(6.0)[:, None], torch.arange(6) % 3))
    split = Split(np.array([3, 1]), np.array([], np.int64), np.array([2]))
    data = FederatedData(table, np.array([0]), {"me": split}, Config())

    assert data.signature == Signature("tabular", (1,)) and data.task.outputs == 3
    assert data.client("me").train.x.tolist() == [[3], [1]]
    assert data.client("me").train.y.tolist() == [0, 1]
    assert len(data.client("me").val) == 0
    assert data.public.x.tolist() == [[0]]
    data.client("me").train.x.zero_()  # a copy
    assert data.client("me").train.x.tolist() == [[3], [1]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.name=digit",), r"data\.name: got 'digit', takes one of .*digits.*npz"),
        (("data.name=no.such:thing",), r"data\.name: got 'no\.such:thing'"),
        (("data.partition.name=x",), r"data\.partition\.name: got 'x', takes one of dirichlet"),
        (("data.partition.name=file",), r"data\.partition\.path: got None"),
        (("data.partition.name=natural",), "takes a source with a client column"),
        (("data.val_fraction=0.75",), r"data\.val_fraction: got 0\.75, takes a number < 0\.75"),
        (("data.clients=1439", "data.partition.name=iid"), r"data\.clients: got 1439, .* 1438"),
        (("data.name=hub:some/set",), r"data\.columns: got None"),
    ],
)
def test_mistakes_are_one_line(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(FedpersError, match=message) as caught:
        load(*overrides)
    assert "\n" not in str(caught.value)


def test_npz_names_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 1)), y=[0, 1] * 3, who=[0, 1, 0, 1, 0, 1])
    source = ("data.name=npz", f"data.path={tmp_path / 'a.npz'}", "data.partition.name=natural")
    data = load(*source, "data.columns.client=who", "data.public_fraction=0")
    assert data.clients == ["0", "1"]
    with pytest.raises(ConfigError, match=r"data\.columns\.client: got 'whom'"):
        load(*source, "data.columns.client=whom")


def test_no_training_or_test_examples_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 1)), y=[0, 1] * 3, group=["one"] * 6)
    source = ("data.name=npz", f"data.path={tmp_path / 'a.npz'}", "data.partition.name=iid")
    rest = ("data.clients=2", "data.split=group", "data.public_fraction=0")
    with pytest.raises(DataError, match=r"no client has a (train|test) example"):
        load(*source, *rest)


def test_a_source_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fedpers_own_source.py").write_text(
        "import torch\n"
        "from fedpers.data import Examples, Table\n"
        "def pairs(config):\n"
        "    y = torch.arange(80) % 2\n"
        "    return Table('tabular', Examples(y[:, None].float(), y))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = load("data.name=fedpers_own_source:pairs", "data.partition.name=iid")
    assert data.signature == Signature("tabular", (1,)) and data.task.outputs == 2


@pytest.mark.parametrize(
    ("name", "file"),
    [("ucihar", "ucihar.npz"), ("convabuse", "convabuse.csv")],
)
def test_named_sets_say_where_they_are_looked_for(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (None, str(tmp_path)):
        if place is None:
            monkeypatch.delenv("FEDPERS_DATA", raising=False)
        else:
            monkeypatch.setenv("FEDPERS_DATA", place)
        with pytest.raises(DataError, match=f"no {file} in the folder FEDPERS_DATA") as caught:
            load(f"data.name={name}")
        assert (place or "not set") in str(caught.value) and "hub" in str(caught.value)


def test_without_file_and_network_the_error_names_both() -> None:
    program = (
        "from fedpers.config import Config, load_config\n"
        "from fedpers.data import load_data\n"
        "from fedpers.errors import DataError\n"
        "for name in ('fashion-mnist', 'hub:no/set'):\n"
        "    try:\n"
        "        load_data(load_config(None, ['data.name=' + name, 'data.columns.image=image']))\n"
        "    except DataError as error:\n"
        "        print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    named, hub = done.stdout.splitlines()
    assert "no fashion_mnist.npz in the folder FEDPERS_DATA" in named and "hub" in named
    assert hub.startswith("data.name: no no/set from the Hugging Face hub")
