"""The page of a comparison."""

from __future__ import annotations

from typing import Any

from simulations.experiments.compare import Cell
from simulations.experiments.compare_page import compare_html, conclusion


def report(mean: float) -> dict[str, Any]:
    summary = {"mean": mean, "weighted": mean, "worst_decile": mean}
    accuracy = {"personal": summary, "global": None, "gated": None}
    return {
        "clients": 3,
        "accuracy": accuracy,
        "breakage_rate": None,
        "harmed_share": None,
        "gated": {"harmed_share": None},
        "macro_f1": {"personal": 0.5},
        "out_of_client": {"personal": None},
    }


REPORTS = {
    Cell(method, "rounds=3", seed, ()): report(mean)
    for method, means in {"local": (0.5, 0.6), "<b>": (0.7, 0.9)}.items()
    for seed, mean in enumerate(means)
}


def test_it_shows_means_and_paired_differences() -> None:
    page = compare_html("digits", REPORTS, "local", "fedpers compare x --strategies 'a<b'")
    assert "80.0 ± 14.1" in page and "55.0 ± 7.1" in page  # over two seeds
    assert "+25.0" in page  # 20 and 30 points
    assert "rounds=3" not in page  # the same in all rows
    assert "<b>" not in page.replace("<b>&", "") and "&lt;b&gt;" in page
    assert "a&lt;b" in page and "http" not in page


def test_a_sentence_says_who_is_best_and_whether_that_is_chance() -> None:
    told = "<b> has the best mean accuracy, 80.0 %, before local with 55.0 %: "
    assert conclusion(REPORTS) == told + "no more than chance between the 2 seeds."
    sure = {
        cell: report(0.9 if cell.method == "<b>" else 0.5 + cell.seed / 100) for cell in REPORTS
    }
    assert conclusion(sure).endswith(": more than chance between the 2 seeds.")
    one = {cell: found for cell, found in REPORTS.items() if cell.seed == 0}
    assert conclusion(one).endswith(
        "With one seed nobody can say whether that is chance: run more (--seeds 5)."
    )
    page = compare_html("digits", one, "local", "")
    assert "one seed, so that there are no intervals" in page and "±" not in page
    alone = {cell: found for cell, found in REPORTS.items() if cell.method == "local"}
    assert conclusion(alone).endswith("there is no other to compare it with.")


def test_the_words_are_explained_and_the_axis_has_ticks() -> None:
    page = compare_html("digits", REPORTS, "local", "")
    assert "<strong>breakage</strong>: of what the global model has right" in page
    assert 'text-anchor="middle">60.0</text>' in page and 'text-anchor="middle">0.0</text>' in page


def test_without_a_reference_there_are_no_differences() -> None:
    assert "Less " not in compare_html("digits", REPORTS, None, "")
