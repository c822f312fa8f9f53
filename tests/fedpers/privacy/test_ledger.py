"""The ledger: charged first, atomic, never forgetful; the budget; the digest of a data set."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.errors import ClientError
from fedpers.files import write_own
from fedpers.privacy import Budget, BudgetSpent, Gaussian, Ledger, Release, data_digest, epsilon_of

ONE = Release(Gaussian(2.0, 0.1), 3)
DELTA = 1e-5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / "ledger.json"


def test_a_charge_is_on_disk_when_it_returns(path: Path) -> None:
    ledger = Ledger(path)
    assert ledger.releases == [] and ledger.epsilon(DELTA) == 0 and not path.exists()
    ledger.charge([ONE, Release(Gaussian(1.0, 1.0), 2)])
    assert Ledger(path).releases == ledger.releases == [ONE, Release(Gaussian(1.0, 1.0), 2)]
    assert path.stat().st_mode & 0o077 == 0


def test_equal_entries_are_one(path: Path) -> None:
    whole, half = Gaussian(1.0, 1.0), Gaussian(2.0, 0.5)
    for _ in range(4):
        Ledger(path).charge([ONE, ONE, Release(whole, 2), Release(half, 1)])
    merged = [Release(Gaussian(2.0, 0.1), 24), Release(whole, 8), Release(half, 4)]
    assert Ledger(path).releases == merged
    assert len(json.loads(path.read_text())["releases"]) == 3
    assert Ledger(path).epsilon(DELTA) == epsilon_of(Ledger(path).releases, DELTA)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"releases": [[2.0, 0.1, 3]',
        "[]",
        "5",
        "{}",
        '{"releases": [[2.0, 0.1]]}',
        '{"releases": [["x", 0.1, 3]]}',
        '{"releases": [[2.0, 0.1, -3]]}',
        '{"releases": [[2.0, 0.1, 2.5]]}',
        '{"releases": [[0.0, 0.1, 3]]}',
        '{"releases": [[NaN, 0.1, 3]]}',
        '{"releases": [[2.0, 1.5, 3]]}',
        "\x00" * 40,
    ],
)
def test_what_cannot_be_read_is_refused_and_left_alone(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ClientError, match=r"cannot be read .* restore it from a backup") as found:
        Ledger(path)
    assert str(path) in str(found.value) and "\n" not in str(found.value)
    assert path.read_text() == text


def test_a_ledger_that_broke_while_it_was_open_is_not_overwritten(path: Path) -> None:
    ledger = Ledger(path)
    ledger.charge([ONE])
    path.write_text("{")
    with pytest.raises(ClientError, match="cannot be read"):
        ledger.charge([ONE])
    assert path.read_text() == "{"


def test_entries_that_stand_there_twice_add_up(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"releases": [[2.0, 0.1, 3], [2.0, 0.1, 4]]}')
    assert Ledger(path).releases == [Release(Gaussian(2.0, 0.1), 7)]


def forked(work: Callable[[], None]) -> int:
    """Do ``work`` in a child process; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_a_killed_process_has_charged_at_least_what_it_announced(path: Path) -> None:
    rng, announced, kills = random.Random(0), 0, 20
    Ledger(path).charge([Release(Gaussian(2.0, 0.1), 1)])
    for kill in range(kills):
        reader, writer = os.pipe()

        def release_in_a_loop(writer: int = writer) -> None:
            ledger = Ledger(path)
            while True:
                ledger.charge([Release(Gaussian(2.0, 0.1), 1)])
                os.write(writer, b"x")  # what is released after the charge

        child = forked(release_in_a_loop)
        os.close(writer)
        if kill % 2:  # not before it has begun to work
            select.select([reader], [], [], 5)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with os.fdopen(reader, "rb") as pipe:
            announced += len(pipe.read())
        (found,) = Ledger(path).releases
        assert 1 + announced <= found.steps <= 1 + announced + kill + 1
    assert announced >= kills / 2


def test_processes_that_share_a_ledger_forget_nothing(path: Path) -> None:
    # As the clients of a simulation do, whose rounds run in whichever process is free.
    ledger = Ledger(path)
    ledger.charge([ONE])
    children = [forked(lambda: [ledger.charge([ONE]) for _ in range(30)] and None) for _ in "abc"]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    ledger.charge([ONE])  # this object has not seen the others' charges
    assert ledger.releases == Ledger(path).releases == [Release(Gaussian(2.0, 0.1), 3 * 92)]


def test_a_ledger_that_lasts_is_vouched_for(tmp_path: Path) -> None:
    def opened() -> Ledger:
        return Ledger.named(tmp_path / "ledgers", "a")

    opened().charge([ONE])
    receipt = json.loads((tmp_path / "accounts" / "a.json").read_text())
    content = json.loads(opened().path.read_text())
    assert receipt == {"ledger": content["ledger"], "charges": 1} and len(content["ledger"]) == 32
    ledger, backup = opened(), opened().path.read_text()
    ledger.charge([ONE])
    assert opened().releases == [Release(Gaussian(2.0, 0.1), 6)]
    ledger.path.write_text(backup)  # while it is open
    with pytest.raises(ClientError, match=r"is older than what was released \(1 of 2 charges\);"):
        ledger.charge([ONE])
    ledger.path.unlink()
    for act in (opened, lambda: ledger.charge([ONE])):
        with pytest.raises(ClientError, match=r"is gone; restore it from a backup: what it held"):
            act()
    assert not ledger.path.exists()


def test_a_crash_between_ledger_and_receipt_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.named(tmp_path / "ledgers", "a")
    ledger.charge([ONE])
    write = write_own

    def full(path: Path, text: str) -> None:
        if path == ledger.receipt:
            raise OSError("no space left")
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("fedpers.privacy.ledger.write_own", full)
        with pytest.raises(OSError, match="no space left"):
            ledger.charge([ONE])
    ledger.charge([ONE])  # over-counted, never under
    assert Ledger.named(tmp_path / "ledgers", "a").releases == [Release(Gaussian(2.0, 0.1), 9)]


def test_processes_that_share_a_lasting_ledger_refuse_nothing(tmp_path: Path) -> None:
    # One opens it while others charge: the receipt that it reads is no newer than the ledger.
    def work() -> None:
        for _ in range(30):
            Ledger.named(tmp_path / "ledgers", "a").charge([ONE])

    children = [forked(work) for _ in "abc"]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert Ledger.named(tmp_path / "ledgers", "a").releases == [Release(Gaussian(2.0, 0.1), 3 * 90)]


def test_the_budget_charges_up_to_its_limit_and_not_a_step_further(path: Path) -> None:
    limit = epsilon_of([Release(Gaussian(2.0, 0.1), 10)], DELTA)
    budget = Budget(Ledger(path), limit, DELTA)
    for _ in range(3):
        budget.charge([ONE])
    before = path.read_bytes()
    with pytest.raises(BudgetSpent, match=r"^budget spent: [\d.]+ of epsilon [\d.]+ is used, and"):
        budget.charge([ONE])  # 12 steps in all
    assert path.read_bytes() == before
    assert budget.ledger.releases == Ledger(path).releases == [Release(Gaussian(2.0, 0.1), 9)]
    assert budget.spent == epsilon_of([Release(Gaussian(2.0, 0.1), 9)], DELTA)
    budget.charge([Release(Gaussian(2.0, 0.1), 1)])
    assert budget.spent == limit
    with pytest.raises(BudgetSpent):
        budget.charge([Release(Gaussian(2.0, 0.1), 1)])


def test_the_budget_counts_what_others_charged_meanwhile(path: Path) -> None:
    limit = epsilon_of([Release(Gaussian(2.0, 0.1), 9)], DELTA)
    mine, theirs = (Budget(Ledger(path), limit, DELTA) for _ in range(2))
    for budget in (mine, theirs, mine):
        budget.charge([ONE])
    for budget in (mine, theirs):
        with pytest.raises(BudgetSpent):
            budget.charge([ONE])


def test_the_budget_counts_releases_of_all_kinds(path: Path) -> None:
    known = (Gaussian(2.0, 0.1), Gaussian(9.0, 1.0), Gaussian(5.0, 1.0))
    kinds = [Release(mechanism, steps) for mechanism, steps in zip(known, (9, 4, 1), strict=True)]
    budget = Budget(Ledger(path), 1.000001 * epsilon_of(kinds, DELTA), DELTA)
    for kind in kinds:
        budget.charge([kind])
    for kind in kinds:
        with pytest.raises(BudgetSpent):
            budget.charge([kind._replace(steps=1)])


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("kinds", [0, 10, pytest.param(3000, marks=pytest.mark.slow)])
def test_the_look_ahead_is_quick(
    path: Path, capsys: pytest.CaptureFixture[str], rate: float, kinds: int
) -> None:
    ledger = Ledger(path)
    ledger.charge([Release(Gaussian(100.0 + k / 100, 0.1), 1) for k in range(kinds)])
    budget, seconds = Budget(ledger, 2.0, DELTA), []
    sigma = budget.calibrated(Gaussian, rate, 40).sigma
    budget.charge([Release(Gaussian(sigma, rate), 1)])
    look = ledger.charge

    def timed(releases: Sequence[Release], check: Callable[[list[Release]], None]) -> None:
        def measured(everything: list[Release]) -> None:
            started = time.thread_time()
            try:
                check(everything)
            finally:
                seconds.append(time.thread_time() - started)

        look(releases, measured)

    ledger.charge = timed  # type: ignore[method-assign, assignment]
    for _ in range(39):  # a history that grows
        budget.charge([Release(Gaussian(sigma, rate), 1)])
    with pytest.raises(BudgetSpent):
        budget.charge([Release(Gaussian(sigma, rate), 2)])
    warm = sorted(seconds)[len(seconds) // 2]
    with capsys.disabled():
        print(f" [look-ahead with {kinds} kinds before: {1e3 * warm:.3f} ms]", end="")
    assert warm < 0.005


examples = st.lists(
    st.tuples(st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4), st.integers(0, 9)),
    min_size=1,
    max_size=12,
)


def tensors(rows: list[tuple[list[float], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor([pixels for pixels, _ in rows]).reshape(-1, 1, 2, 2)
    return x, torch.tensor([label for _, label in rows], dtype=torch.int64)


@given(examples, st.randoms(use_true_random=False), st.integers(0, 12))
def test_the_digest_knows_neither_order_nor_split(
    rows: list[tuple[list[float], int]], rng: random.Random, cut: int
) -> None:
    name = data_digest([tensors(rows)])
    shuffled = rng.sample(rows, len(rows))
    parts = [tensors(part) for part in (shuffled[:cut], shuffled[cut:]) if part]
    assert data_digest(parts) == name
    # A copy of a tensor in another memory layout holds the same examples.
    x, y = tensors(rows)
    assert data_digest([(x.expand(2, *x.shape)[1], y)]) == name


@given(examples, st.data())
def test_the_digest_knows_every_pixel_label_and_example(
    rows: list[tuple[list[float], int]], data: st.DataObject
) -> None:
    name = data_digest([tensors(rows)])
    k = data.draw(st.integers(0, len(rows) - 1))
    x, y = tensors(rows)
    x[k, 0, data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))] += 0.5
    assert data_digest([(x, y)]) != name
    x, y = tensors(rows)
    y[k] = y[k] + 1
    assert data_digest([(x, y)]) != name
    assert data_digest([tensors([*rows, rows[k]])]) != name
    assert len(rows) == 1 or data_digest([tensors(rows[:k] + rows[k + 1 :])]) != name


def test_another_number_to_predict_is_another_data_set() -> None:
    x = torch.zeros(2, 3)
    names = {data_digest([(x, torch.tensor([a, -0.5]))]) for a in (0.25, 0.5, -0.25)}
    assert len(names) == 3
    assert data_digest([(x, torch.tensor([-0.5, 0.25]))]) in names
