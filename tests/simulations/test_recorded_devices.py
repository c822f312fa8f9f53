"""What crosses the wire from devices of a private run, inside of TLS: real SuperNodes on loopback,
one whose data break a plug-in, one with huge values, one with labels nobody told of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpers.config import load_config
from simulations.devices.rehearsal import make_files, rehearsal

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "configs" / "devices.yaml"
SECRET = "Jane-Doe-HIV-positive"
MARK = np.array([0.71234567, 0.31415927, 0.57721566], dtype=np.float32)
PLUGIN = f"""
from clients.methods.fedavg import FedAvg
from strategies.base import PersonalizedStrategy


class Breaks(FedAvg):
    accounted = True

    def conclude(self, working, trainer):
        if trainer.client == "device-1":
            raise RuntimeError(f"{SECRET} {{trainer.examples.x[0].tolist()}}")
        return working


class Broken(PersonalizedStrategy):
    algorithm = "breaks_for_tests:Breaks"
"""


def test_no_word_of_the_data_crosses_the_wire(tmp_path: Path, proxy: Any) -> None:
    (tmp_path / "breaks_for_tests.py").write_text(PLUGIN)
    settings = [
        *("encryption.enabled=false", "rounds=3", "strategy.name=breaks_for_tests:Broken"),
        *("strategy.params={}", "strategy.min_clients=3", "round_timeout=240"),
        *("model.cache=false", "evaluation.every=3"),
    ]
    config = load_config(CONFIG, settings)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.syspath_prepend(str(tmp_path))
        with rehearsal() as found:
            files = make_files(config, found.space.folder)  # for as many devices
            files.config.strategy.min_clients = 1
            seen = proxy(found.port, found.certificates)
            for client, data in files.data.items():
                with np.load(data) as rows:
                    x, y = np.array(rows["x"]), np.array(rows["y"])
                x.reshape(len(x), -1)[:, :3] = MARK
                if client == "device-2":
                    x.reshape(len(x), -1)[::5, 7] = 3e38
                named = data.with_name(f"{SECRET}-{data.name}")
                np.savez(named, x=x, y=y)
                found.register(client)
                found.start_node(client, named, None, port=seen.port)
            found.run(files.config, tmp_path / "run", lambda line: None)
            log = found.space.folder / "state-device-1" / "failures.log"
            told, kept = log.read_text(), bytes(seen.kept)
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    failed = [json.loads(line)["failed"] for line in lines]
    why = "it failed; failures.log in the state folder there says why"
    assert failed[-1]["device-1"] == why
    assert not any(set(one) - {"device-1"} for one in failed)
    assert SECRET in told and "0.7123" in told
    # The recording is of the right connections: it holds what may leave.
    assert b'"device-1": "failed"' in kept and b'"held_back": true' in kept and b'"noise"' in kept
    assert SECRET.encode() not in kept and b"Jane" not in kept and b"Traceback" not in kept
    assert b"0.7123" not in kept and b".npz" not in kept.replace(b"public.npz", b"")
    for kind in ("<f4", "<f8"):
        assert MARK.astype(kind).tobytes() not in kept
