"""Where a device's policy is enforced: before a message is unpacked, let alone obeyed.

What it has to remember, as which runs were permitted and how often it trained today, is in the
device's state folder; so is the log, in which each refusal is a line, and each run taken up.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from clients.node.device import Device
from clients.policy.policy import Policy, read_policy
from clients.policy.wishes import refused_shares, refused_wishes
from fedpers.config import Config, config_from_json
from fedpers.errors import ClientError, FedpersError
from fedpers.failures import POLICY_LOG
from fedpers.files import alone_with, read_own, write_own
from fedpers.permit import Permit

KEPT = "policy.json"
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # names of runs
LONGEST = 300  # characters of a line that a server can fill
AGAIN = 2  # trainings for each round of a run, at most
FULL = 2**26  # bytes of the log, after which nothing is obeyed and nothing is written any more
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)


class Refused(FedpersError):
    """The policy does not allow what was asked; the text is for the device's own log."""


class Enforcement:
    """A device's policy at work.

    Args:
        device: whose.
        clock: seconds since 1970.
    """

    def __init__(self, device: Device, clock: Callable[[], float] = time.time) -> None:
        self.device, self.clock = device, clock

    def admit(self, kind: str, content: RecordDict) -> None:
        """Let a message pass, or raise.

        Args:
            kind: of the message, one of ``policy.KINDS``.
            content: as it came.

        Raises:
            Refused: the log has a line that says why. What a message of training uses up of the
                day's rounds is then not used up.
        """
        try:
            self._check(kind, content)
        except (FedpersError, OSError) as error:
            self._log(f"{kind} refused: {error}")
            raise Refused(str(error)) from error
        except UNREADABLE as error:
            self._log(f"{kind} refused: it cannot be read ({type(error).__name__}: {error})")
            raise Refused("it cannot be read") from error

    def refuse(self, kind: str, why: str) -> None:
        """Note in the log that a message is not looked at, let alone obeyed.

        Raises:
            Refused: it cannot be noted.
        """
        self._log(f"{kind} refused: {why}")

    def _check(self, kind: str, content: RecordDict) -> None:
        policy = read_policy(self.device.policy)
        if kind not in policy.messages:
            raise Refused(f"messages: got {kind}, takes {', '.join(policy.messages)}")
        body, scalars = self._measured(policy, content)
        if scalars > policy.scalars:
            raise Refused(f"scalars: got {scalars}, takes at most {policy.scalars}")
        config = settings_read(body["settings"])
        schema = json.loads(body["schema"]) if body.get("schema") else {}
        for line in refused_wishes(policy, config, str(body["algorithm"]), schema.get("task")):
            raise Refused(line)
        if kind == "train":
            for line in refused_shares(policy, config, body.get("channel", {})):
                raise Refused(line)
        for count in body.get("batches", []):
            if type(count) is not int or not 0 <= count <= policy.steps:
                raise Refused(f"batches: got {count!r}, takes at most {policy.steps}")
        permit = Permit.from_json(body.get("permit"))
        if permit.operator not in policy.operators:
            raise Refused(f"operators: got {permit.operator!r}, takes one of the policy")
        if not permit.allows(config, body["algorithm"], body["server_params"]):
            raise Refused("permit: got other settings than it was signed for")
        with self._kept() as kept:
            self._turn(policy, kept, kind, permit, body, config)

    def _measured(self, policy: Policy, content: RecordDict) -> tuple[dict[str, Any], int]:
        """The body of a message that is not too large, and the scalars of its plain parts."""
        arrays = [a for record in content.array_records.values() for a in record.values()]
        texts = [v for record in content.config_records.values() for v in record.values()]
        size = sum(len(a.data) for a in arrays) + sum(len(str(text)) for text in texts)
        if size > policy.bytes:
            raise Refused(f"bytes: got {size}, takes at most {policy.bytes}")
        message = content.config_records["message"]
        body = json.loads(str(message["body"]))
        if not isinstance(body, dict):
            raise ValueError("its body is no object")
        widths = [int(a.shape[-1]) for a in arrays if a.shape] if "opaque" not in message else []
        return body, sum(widths)

    def _turn(
        self,
        policy: Policy,
        kept: dict[str, Any],
        kind: str,
        permit: Permit,
        body: Mapping[str, Any],
        config: Config,
    ) -> None:
        """Whether it is the time for it, and this run's turn; what is kept is changed."""
        now = kept["now"] = max(self.clock(), kept["now"])  # a clock set back gives nothing back
        said, at = permit.said(), datetime.fromtimestamp(now, UTC)
        if now >= said["expires"]:
            late = f"and it is {_time(now)} at the least"
            raise Refused(f"permit: it expired at {_time(said['expires'])}, {late}")
        first, last = policy.hours
        inside = first <= at.hour < last if first < last else not last <= at.hour < first
        if not inside:
            raise Refused(f"hours: got {at.hour}, takes {first} to {last}")
        name, run = Path(body["run_folder"]).name, said["run"]
        if not FOLDER.fullmatch(name):
            raise Refused(f"run_folder: got {name!r}, takes a name of letters and digits")
        runs: dict[str, Any] = kept["runs"]
        if run not in runs:
            self._take_up(policy, runs, run, name, permit)
        if runs[run]["folder"] != name:
            raise Refused(f"permit: it is that of the run {runs[run]['folder']!r}, got {name!r}")
        if kind == "train":
            self._round(policy, kept, runs[run], body, config, f"{at:%Y-%m-%d}")

    def _take_up(
        self, policy: Policy, runs: dict[str, Any], run: str, name: str, permit: Permit
    ) -> None:
        if name in {known["folder"] for known in runs.values()}:
            raise Refused(f"permit: the run {name!r} had another")
        if len(runs) >= policy.runs:
            raise Refused(f"runs: got {len(runs) + 1}, takes at most {policy.runs}")
        runs[run] = {"folder": name, "round": 0, "trained": 0}
        self._log(f"taken up: run {name!r}, permit {run}, operator {permit.operator}")

    def _round(
        self,
        policy: Policy,
        kept: dict[str, Any],
        run: dict[str, Any],
        body: Mapping[str, Any],
        config: Config,
        day: str,
    ) -> None:
        # The last two may be asked again, as by a server that was started anew; not for ever.
        number, least = body["round"], max(run["round"] - 1, 1)
        if type(number) is not int or not least <= number <= config.rounds:
            raise Refused(f"round: got {number!r}, takes {least} to {config.rounds}")
        if run["trained"] >= AGAIN * config.rounds:
            raise Refused(f"rounds: got {run['trained'] + 1} trainings in {config.rounds} rounds")
        trained = kept["trained"] if kept["day"] == day else 0
        if trained >= policy.rounds_a_day:
            raise Refused(f"rounds_a_day: got {trained + 1}, takes at most {policy.rounds_a_day}")
        kept["day"], kept["trained"] = day, trained + 1
        run["round"], run["trained"] = max(run["round"], number), run["trained"] + 1

    @contextmanager
    def _kept(self) -> Iterator[dict[str, Any]]:
        """What is remembered; on the disk when the block has ended without an error, and the time
        even then."""
        path = self.device.state / KEPT
        with alone_with(path):
            text = read_own(path)
            none: dict[str, Any] = {"now": 0.0, "day": "", "trained": 0, "runs": {}, "count": 0}
            before = none if text is None else {**none, **json.loads(text)}
            self._check_newest(before["count"])
            before["count"] += 1
            kept = json.loads(json.dumps(before))
            try:
                yield kept
            except BaseException:
                kept = {**before, "now": kept["now"]}
                raise
            finally:
                write_own(path, json.dumps(kept))
                if self.device.counter is not None:  # later, so that it is never ahead
                    write_own(self.device.counter, f"{kept['count']}\n")

    def _check_newest(self, count: int) -> None:
        """Refuse a state that is older than what was done here, as it forgets what was spent.

        Raises:
            Refused: the counter outside of it has seen more.
        """
        if self.device.counter is None:
            return
        seen = int(read_own(self.device.counter) or 0)
        if count < seen:
            why = f"it is older than what was done here (message {count} of {seen})"
            cure = f"restore a newer one, or remove {self.device.counter} if what is lost may be"
            raise Refused(f"state: {why}; {cure}")

    def _log(self, text: str) -> None:
        """One line, whatever the text.

        Raises:
            Refused: it cannot be written, or the log is full; then nothing is obeyed.
        """
        line = json.dumps(text, ensure_ascii=True)[1:-1].replace('\\"', '"')
        line = line if len(line) <= LONGEST else line[:LONGEST] + " ..."
        path = self.device.state / POLICY_LOG
        try:
            self.device.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            handle = os.open(path, flags, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8") as file:
                if os.fstat(handle).st_size > FULL:
                    raise Refused(f"{POLICY_LOG}: it is full; read it, and put it aside")
                file.write(f"{_time(self.clock())} {line}\n")
        except OSError as error:
            raise Refused(f"{POLICY_LOG}: it cannot be written ({error.strerror})") from None


def runs_taken(state: Path) -> set[str]:
    """The runs that a device has taken up, ever, as their permits name them.

    Raises:
        ClientError: what it remembers cannot be read.
    """
    try:
        return set(json.loads(read_own(state / KEPT) or '{"runs": {}}')["runs"])
    except (OSError, *UNREADABLE) as error:
        cure = "restore it from a backup"
        raise ClientError(f"state: {state / KEPT} cannot be read ({error}); {cure}") from None


@lru_cache(maxsize=4)
def settings_read(text: str) -> Config:
    """The settings in a message; read once, as a run's messages all have the same."""
    return config_from_json(text)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
