"""Whether a change of structure changed a figure: digests of what runs leave, before and after.

``python tests/same_figures.py --record`` writes ``tests/same_figures.json``; without it the runs
are made again and compared, and "all equal" is printed if nothing differs. Every shipped config is
run, shortened, plain, private (with test noise), under BFV and CKKS, folded and resumed; then every
method on the digits. A run in process, no Ray: through Ray the figures are the same.

Bits are those of one kind of processor and one set of wheels: record and compare on one machine.
Configs whose data or packages are not there are named and left out; ``FEDPERS_DATA`` names the
folder of the data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from typer.testing import CliRunner

HOME = Path(__file__).parent.parent
RECORD = Path(__file__).with_suffix(".json")
SHORT = ["rounds=2", "evaluation.every=1", "data.max_train=24", "evaluation.outside=20"]
PRIVATE = ["privacy.enabled=true", "privacy.deterministic_for_tests=true", "privacy.epsilon=4"]
SEALED = ["encryption.enabled=true", "encryption.keys=null"]
PLAIN = ["privacy.enabled=false", "encryption.enabled=false"]
VARIANTS = {
    "plain": PLAIN,
    "private": [*PRIVATE, "encryption.enabled=false"],
    "bfv": ["privacy.enabled=false", *SEALED, "encryption.scheme=bfv"],
    "ckks": ["privacy.enabled=false", *SEALED, "encryption.scheme=ckks"],
    "folded": [*PLAIN, "training.fold=4"],
    "resumed": PLAIN,
}
METHODS = (
    *("fedavg", "fedper", "fedrep", "fedbabu", "apfl", "ditto", "perada", "fedcp"),
    *("fedala", "feddpa", "pfedsim", "prior", "intercept", "local"),
)
NOT_RUN = ("devices.yaml",)  # needs files that `fedpers devices demo` makes
# What is another in each run, or follows the machine.
VOLATILE = ("run_id", "seconds", "environment", "key_id", "privacy")
ABOUT = 3  # digits that a CKKS run is held to: its noise is fresh in each


def cases() -> Iterator[tuple[str, Path, list[str], str]]:
    """A name, a config, overrides and a variant for each run."""
    for config in sorted((HOME / "configs").glob("*.yaml")):
        if config.name not in NOT_RUN:
            for variant, overrides in VARIANTS.items():
                yield f"{config.stem}/{variant}", config, [*SHORT, *overrides], variant
    digits = HOME / "configs" / "digits.yaml"
    for method in METHODS:
        chosen = [*SHORT, f"strategy.name={method}", "strategy.params={}"]
        yield f"method {method}/plain", digits, [*chosen, *PLAIN], "plain"
        yield f"method {method}/private", digits, [*chosen, *VARIANTS["private"]], "private"


def run(config: Path, overrides: list[str], variant: str, folder: Path) -> str | dict[str, Any]:
    """Digests of a run, or the line with which it refused."""
    (script,) = entry_points(group="console_scripts", name="fedpers")
    app = sys.modules[script.load().__module__].app
    given = [str(config), *overrides, f"output={folder}", "--backend", "serial"]
    found = CliRunner().invoke(app, ["run", *given])
    if variant == "resumed" and found.exit_code == 0:
        (made,) = [path for path in folder.iterdir() if path.is_dir()]
        longer = [*given[:1], "rounds=3", *given[2:], "--resume", str(made)]
        found = CliRunner().invoke(app, ["run", *longer])
    if found.exit_code != 0:
        lines = (found.output + found.stderr).strip().splitlines()
        return lines[-1].replace(str(folder), "") if lines else repr(found.exception)
    (made,) = [path for path in folder.iterdir() if path.is_dir()]
    return digests(made, about=variant == "ckks")


def digests(made: Path, *, about: bool) -> dict[str, Any]:
    """What a run left: parts, ledgers and the report, without what differs from run to run."""
    parts = {}
    for path in sorted(made.rglob("*.safetensors")):
        name = str(path.relative_to(made))
        if "answer" in path.name or "checkpoint" in name or "adapters" in name:
            continue
        tensors = load_file(path)
        if about:
            parts[name] = str({n: f"{t.double().norm():.{ABOUT}g}" for n, t in tensors.items()})
        else:
            content = b"".join(
                n.encode() + tensors[n].contiguous().view(-1).numpy().tobytes()
                for n in sorted(tensors)
            )
            parts[name] = hashlib.sha256(content).hexdigest()
    ledgers = {
        path.stem[:12]: [charged(row) for row in json.loads(path.read_text())["releases"]]
        for path in sorted(made.rglob("ledgers/*.json"))
    }
    report = json.loads((made / "report.json").read_text())
    report = {name: value for name, value in report.items() if name not in VOLATILE}
    if isinstance(sealed := report.get("encryption"), dict):
        report["encryption"] = {name: sealed[name] for name in sealed if name != "key_id"}
    if about:
        report = {name: report[name] for name in ("strategy", "rounds", "clients")}
    return {
        "parts": digest(parts),
        "ledgers": digest(ledgers),
        "report": {name: digest(value) for name, value in report.items()},
        "personal": (report.get("accuracy") or {}).get("personal", {}).get("mean"),
    }


def charged(row: Any) -> list[Any]:
    """Noise multiplier, sampling rate and steps of a ledger's row, however it is written."""
    return row if isinstance(row, list) else [row["sigma"], row["rate"], row["steps"]]


def digest(value: Any) -> str:
    """Of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def differences(found: Any, known: Any) -> list[str]:
    """What is another than it was; a field that is new beside those known is none."""
    if isinstance(found, str) and isinstance(known, str):  # refused, whatever the words
        return []
    if not isinstance(found, dict) or not isinstance(known, dict):
        return [f"got {found}, had {known}"]
    names = [name for name in ("parts", "ledgers", "personal") if found[name] != known[name]]
    now, before = found["report"], known["report"]
    return names + [f"report.{name}" for name in before if now.get(name) != before[name]]


def main() -> int:
    """Record or compare; 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    given = parser.parse_args()
    os.environ.setdefault("FEDPERS_DATA", str(HOME.parent / "shared" / "data"))
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    different = 0
    for name, config, overrides, variant in cases():
        if given.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="fedpers-same-") as folder:
            found = run(config, overrides, variant, Path(folder))
        if given.record:
            known[name] = found
            print(name, found, flush=True)
        elif isinstance(found, str) and not isinstance(known.get(name), str):
            print(f"{name}: left out: {found}", flush=True)
        elif others := differences(found, known.get(name)):
            different += 1
            print(f"{name}: {', '.join(others)}", flush=True)
    if given.record:
        RECORD.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    elif not different:
        print("all equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
