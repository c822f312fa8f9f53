"""Whether anything that is released can come from a generator other than ``fedpers.privacy.noise``:
read off the syntax trees of all that runs on a client or a server."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("clients", "fedpers", "strategies")

# What draws, or seeds what draws: of torch, numpy and random, as functions or as methods.
DRAWS = {
    *("Generator", "RandomState", "SystemRandom", "default_generator", "default_rng", "fork_rng"),
    *("manual_seed", "set_rng_state", "rand", "rand_like", "randn", "randn_like", "randint"),
    *("randint_like", "randperm", "randrange", "normal", "standard_normal", "bernoulli"),
    *("binomial", "multinomial", "poisson", "dropout", "Dropout", "shuffle", "permutation"),
    *("choice", "gauss", "normalvariate", "normal_", "uniform_", "bernoulli_"),
    *("exponential_", "random_", "cauchy_", "geometric_", "log_normal_", "kaiming_uniform_"),
    *("kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_", "orthogonal_"),
    *("urandom", "token_bytes", "token_hex", "randbits", "randbelow", "getrandbits"),
}
# Modules and functions that are found by the name under which a file imports them.
IMPORTED = {"random", "secrets", "uuid", "numpy.random", "torch.distributions"}
SEEDED = {"seed_for", "seeded", "torch_generator", "numpy_generator"}

NOT_RELEASED = {
    # -- the rooms themselves
    "fedpers/privacy/noise.py secret": "the key of every source, from the operating system",
    "fedpers/seeding.py torch_generator": "what is not secret: per run, round, client, purpose",
    "fedpers/seeding.py numpy_generator": "likewise",
    "fedpers/seeding.py seeded": "likewise",
    # -- what a run starts from, the same on all machines
    "fedpers/models/build.py _build": "the first weights",
    "fedpers/models/lora.py add_lora": "the first adapters",
    "fedpers/models/slots.py PolicyGate.__init__": "the gate's first weights",
    "fedpers/models/slots.py Valve.__init__": "the valve's first weights",
    "strategies/methods/ifca.py IFCA.first": "how far apart models start",
    "fedpers/models/export.py _published": "a model that is overwritten at once",
    "clients/methods/fedbabu.py FedBABU.extend": "the head that all clients share",
    # -- who has which data, before the run
    "fedpers/models/pretrain.py _examples_and_targets": "public data for a made-up pretraining",
    "fedpers/models/pretrain.py _fit": "the order of public batches, before the run",
    "fedpers/data/federated.py FederatedData.__init__": "who is held out of a simulation",
    "fedpers/data/federated.py _limited": "which examples a simulated client has at all",
    "fedpers/data/partition.py deal": "who has which examples of a simulation",
    "fedpers/data/partition.py _deal": "likewise",
    "fedpers/data/partition.py _min_size_met": "likewise",
    "fedpers/data/public.py draw_public": "which rows are public",
    "fedpers/data/public.py _whole_clients": "likewise",
    "fedpers/data/shift.py shifted": "how a simulated client's inputs differ",
    "fedpers/data/splits.py split_rows": "which examples are for training, validation and test",
    "fedpers/data/splits.py group_sides": "likewise",
    # -- on a client: what stays there, or is not private
    "fedpers/models/personal.py PersonalModel.uniform": "a forward pass where no source is set",
    "clients/training/gradients.py Gradients._drawing": "a forward pass of what is not released",
    "clients/training/trainer.py Trainer.batches": "the order of batches of what is not released",
    "clients/methods/fedala.py FedALA.learn_weights": "the order of batches for weights that stay",
    "clients/methods/feddpa.py FedDPA.recall": "which own examples a prediction is likened to",
    "clients/training/scoring.py Scoring.others": "whose test examples a simulation borrows",
    "clients/training/groups.py disagreement": "a trial of the model on made-up weights",
    "fedpers/privacy/plan.py _each_alone": "a trial of the method on made-up values",
    "fedpers/privacy/plan.py _each_alone.made_up": "likewise",
    "fedpers/privacy/plan.py _spread": "likewise",
    "fedpers/privacy/neighbours.py inputs": "made-up examples of the leak test",
    "fedpers/privacy/neighbours.py texts": "likewise",
    "fedpers/privacy/listener.py signs": "how the leak test compares gradients",
    "fedpers/privacy/hidden.py state_of": "whether a generator was used that may not be",
    "fedpers/privacy/hidden.py _within": "likewise",
    "clients/leaktest/asking.py opening": "what the leak test sends made-up clients",
    "clients/leaktest/rehearsal.py Rehearsal.run.work": "two worlds of it have the same generators",
    "clients/leaktest/verdict.py check_leaks": "what made-up clients are to predict",
    "fedpers/tasks/base.py Task.made_up_scores": "likewise",
    "fedpers/tasks/causal_lm.py CausalLM.made_up": "likewise",
    "fedpers/tasks/causal_lm.py CausalLM.made_up_scores": "likewise",
    "fedpers/tasks/classification.py Classification.made_up": "likewise",
    "fedpers/tasks/regression.py Regression.made_up": "likewise",
    # -- on a server: what is made of releases
    "strategies/base.py PersonalizedStrategy.select": "who is asked; no privacy rests on it",
    "strategies/methods/dfedalt.py DFedAlt.mixing": "who is whose neighbour in a round",
    "strategies/methods/dfedalt.py edges_of": "likewise",
    "strategies/methods/perada.py PerAda.refine": "the order of public batches",
    # -- names
    "fedpers/channels/sealed/keys.py generate": "the name of a key",
    "fedpers/permit.py Permit.signed": "the name of a run that an operator permits",
    "fedpers/privacy/ledger.py Ledger.charge": "the name of a ledger",
    "fedpers/evaluation/run_folder.py new_run_id": "the name of a run",
}
# A method of a source that is called as one of torch's functions is.
METHOD = {("fedpers/privacy/noise.py Source.noised", "normal")}


def draws_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each function, by its qualified name, and what draws or seeds in it."""
    names = {alias for alias, module in imports_of(tree) if module in IMPORTED | SEEDED}

    def walk(node: ast.AST, where: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inner = where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*where, child.name)
            if isinstance(child, ast.Attribute) and child.attr in DRAWS | {"random"}:
                yield ".".join(where), child.attr
            if isinstance(child, ast.Name) and child.id in names | DRAWS:
                yield ".".join(where), child.id
            if isinstance(child, ast.Constant) and child.value in DRAWS:  # by getattr
                yield ".".join(where), child.value
            yield from walk(child, inner)

    return walk(tree, ())


def imports_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The names that a file imports, and what they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
                yield alias.asname or alias.name, str(node.module)


def test_what_is_released_draws_from_a_source_alone() -> None:
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for where, what in draws_of(ast.parse(path.read_text())):
                found.setdefault(f"{path.relative_to(ROOT)} {where}", set()).add(what)
    drawn = {(where, what) for where, names in found.items() for what in names}
    strangers = {(where, what) for where, what in drawn - METHOD if where not in NOT_RELEASED}
    assert not strangers, "draw from a Source, or say here why it is not released"
    assert drawn >= METHOD and NOT_RELEASED.keys() <= found.keys(), "no longer there"


@pytest.mark.parametrize(
    "text",
    [
        "x = torch.randn(3)",
        "x = y.normal_()",
        "g = torch.Generator()",
        "import random\nx = random.gauss(0, 1)",
        "from random import gauss as draw\nx = draw(0, 1)",
        "import numpy as np\nx = np.random.default_rng(0)",
        "from numpy.random import *\nx = standard_normal(3)",
        "from fedpers.seeding import torch_generator as made\ng = made(0)",
        "from torch.distributions import Laplace\nx = Laplace(0, 1)",
        "x = getattr(torch, 'randn')(3)",
        "import os\nx = os.urandom(4)",
    ],
)
def test_a_draw_is_seen(text: str) -> None:
    assert list(draws_of(ast.parse(text)))


def test_what_only_sounds_like_a_draw_is_let_through() -> None:
    text = "seeded = kind == 'vector'\nx = known(seed)('a').uniform(3)\nrandom_state = 3"
    assert not list(draws_of(ast.parse(text)))
