"""Graphs and Metropolis' weights, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from strategies.methods.dfedalt import DFedAlt, edges_of, metropolis, out_of_reach


def test_the_weights_of_a_path() -> None:
    """0 - 1 - 2: degrees 1, 2, 1, so both links weigh 1 / 3."""
    third = 1 / 3
    expected = [[2 * third, third, 0.0], [third, third, third], [0.0, third, 2 * third]]
    torch.testing.assert_close(metropolis(3, {(0, 1), (1, 2)}), torch.tensor(expected))


def test_everybody_linked_is_the_mean() -> None:
    everyone = edges_of("complete", "abcd", 0)
    torch.testing.assert_close(metropolis(4, everyone), torch.full((4, 4), 0.25))


@pytest.mark.parametrize("topology", ["ring", "complete", "random:2", "random:4", "random:99"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_weights_are_doubly_stochastic_and_graphs_connected(topology: str, count: int) -> None:
    clients = [str(number) for number in range(count)]
    edges = edges_of(topology, clients, 5)
    weights = metropolis(count, edges)
    torch.testing.assert_close(weights.sum(0), torch.ones(count))
    assert torch.equal(weights, weights.T) and bool((weights >= 0).all())
    assert out_of_reach(count, edges) is None


def test_the_links_of_a_random_graph_are_drawn_anew() -> None:
    clients = [str(number) for number in range(20)]
    first, again, other = (edges_of("random:4", clients, seed) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 40


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[["0", "1"]]', "takes a graph that is connected; no path leads to client"),
        ("{", "of pairs of client ids"),
        ("[[1, 2, 3]]", "of pairs of client ids"),
        (None, "of pairs of client ids"),
    ],
)
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, text: str | None, line: str) -> None:
    file = tmp_path / "graph.json"
    if text is not None:
        file.write_text(text)
    config = load_config(
        None, ["strategy.name=dfedalt", "data.clients=4", f"strategy.params.topology={file}"]
    )
    with pytest.raises(ConfigError, match=line) as found:
        DFedAlt.check(config, load_data(config))
    assert "\n" not in str(found.value)


def test_a_run_along_a_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps([[str(k), str(k + 1)] for k in range(5)]))
    assert run("dfedalt", f"strategy.params.topology={file}").failures() == {}
