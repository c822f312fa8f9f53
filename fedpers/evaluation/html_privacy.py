"""The sections of a report on privacy, its audit, and encryption."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from fedpers.evaluation import charts
from fedpers.evaluation.page import bars, by_name, esc, facts, figure, listed, section, table
from fedpers.evaluation.run_files import RunRecord, number
from fedpers.privacy.accounting import rounded_up

SPENT = ("epsilon_max", "epsilon_mean", "mu")

# Of a membership attack; TPR at a rate of false alarms.
FIGURES = {"auc": "AUC", "tpr_at_1_fpr": "TPR at 1 %", "tpr_at_0.1_fpr": "TPR at 0.1 %"}


def privacy_section(run: RunRecord) -> str:
    """What each client spent; nothing without privacy."""
    privacy = run.report.get("privacy")
    if not isinstance(privacy, Mapping) or not privacy.get("enabled"):
        return ""
    apart = ("enabled", "not_covered", "notes", "per_client", "signal_to_noise")
    given = {
        name: shown(name, value) if isinstance(value, float) and value >= 0.001 else value
        for name, value in privacy.items()
        if name not in apart
    }
    each = privacy.get("per_client")
    spent = {str(c): number(each, c) or 0.0 for c in each} if isinstance(each, Mapping) else {}
    chart = _spent(spent) if spent else ""
    signal = privacy.get("signal_to_noise")
    ratios = ""
    if isinstance(signal, Mapping) and signal:
        rows = [[str(part), figure(number(signal, part))] for part in signal]
        ratios = table(["part", "signal to noise of the mean update"], rows)
    notes = privacy.get("notes")
    told = listed(notes) if isinstance(notes, list) else ""
    return section("Privacy spent", told, f'<div class="pair">{facts(given)}{chart}</div>', ratios)


def shown(name: str, value: float) -> str:
    """A figure; one of what was spent is rounded up."""
    return rounded_up(value, 3) if name in SPENT else figure(value, 3)


def _spent(spent: Mapping[str, float]) -> str:
    """Epsilon by client, or how many clients spent how much where they are many."""
    texts = {rounded_up(value) for value in spent.values()}
    if len(spent) > 1 and len(texts) == 1:
        return f"<p>Each of {len(spent)} clients spent epsilon {esc(*texts)}.</p>"
    if len(spent) <= charts.LABELLED:
        order = sorted(spent, key=lambda client: (-spent[client], by_name(client)))
        return bars([(c, spent[c], rounded_up(spent[c])) for c in order], "Epsilon spent by client")
    low, high = min(spent.values()), max(spent.values())
    width = (high - low) / 10 or 1.0
    counts = [0] * (10 if high > low else 1)
    for value in spent.values():
        counts[min(len(counts) - 1, int((value - low) / width))] += 1
    rows = [
        (f"{low + k * width:.2f} to {min(high, low + (k + 1) * width):.2f}", count, str(count))
        for k, count in enumerate(counts)
    ]
    return bars([(n, float(c), t) for n, c, t in rows], "Clients by epsilon spent")


def encryption_section(run: RunRecord) -> str:
    """The scheme and its cost; nothing without encryption."""
    given = run.report.get("encryption")
    if not isinstance(given, Mapping) or not given.get("enabled"):
        return ""
    return section("Encryption", facts({n: v for n, v in given.items() if n != "enabled"}))


def audit_section(run: RunRecord) -> str:
    """What the attacks of ``audit.json`` found; nothing without that file."""
    found = run.audit
    if found is None:
        return ""
    pieces = []
    claimed, least = number(found, "epsilon", "claimed"), number(found, "epsilon", "at_least")
    if claimed is not None and least is not None:
        text = f"Claimed: epsilon {claimed:.3g}. "
        text += f"Shown by attack, at 95 % confidence: at least {least:.3g}. "
        whatever = number(found, "epsilon", "at_least_any")
        if whatever is not None:
            text += f"Without taking it for a noised sum: at least {whatever:.3g}. "
            least = max(least, whatever)
        if least > claimed:
            pieces.append(f'<p class="warn">{esc(text)}The claim is refuted.</p>')
        else:
            pieces.append(f"<p>{esc(text)}The claim is not refuted.</p>")
    pieces += [_membership(found.get("membership")), _inversion(run, found.get("inversion"))]
    return section("Audit: attacks on this run’s settings", *pieces)


def _membership(found: Any) -> str:
    builds = [b for b in ("off", "on") if isinstance(found, Mapping) and b in found]
    rows = []
    for view in ("global", "upload", "personal"):
        for attack in ("loss", "lira"):
            values = [number(found, build, view, attack, n) for build in builds for n in FIGURES]
            if any(value is not None for value in values):
                rows.append([f"{view}, {attack}", *(figure(value, 3) for value in values)])
    if not rows:
        return ""
    head = [f"{title}, privacy {build}" for build in builds for title in FIGURES.values()]
    note = (
        "Telling a client’s training examples from others. AUC: 0.5 is guessing, 1 is certainty. "
        "TPR: the share of training examples found where 1 % or 0.1 % of others are taken for such."
    )
    return table(["model, attack", *head], rows) + f'<p class="soft">{note}</p>'


def _inversion(run: RunRecord, found: Any) -> str:
    told = []
    for build in ("off", "on"):
        values = found.get(build) if isinstance(found, Mapping) else None
        numbers = [number({"v": v}, "v") for v in values] if isinstance(values, list) else []
        finite = [value for value in numbers if value is not None]
        if finite:
            told.append(f"{sum(finite) / len(finite):.1f} dB with privacy {build}")
    text = f"Examples rebuilt from an update (PSNR, higher is closer): {', '.join(told)}."
    lines = f"<p>{esc(text)}</p>" if told else ""
    if run.picture is None:
        return lines
    data = base64.b64encode(run.picture).decode("ascii")
    alt = "Training examples, and what an attacker rebuilt of them, without and with privacy"
    photo = f'<img class="photo" alt="{alt}" src="data:image/png;base64,{data}">'
    return f"{lines}<figure>{photo}<figcaption>{alt}.</figcaption></figure>"
