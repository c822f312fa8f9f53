"""The resident node: one process that asks its SuperLink for messages and answers them with what
is installed here. No app that is sent is asked for, let alone run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from clients.node.client_app import app
from clients.node.device import Device
from clients.node.failures import Reasons
from clients.node.fleet import BEAT, Asked, Beyond, Declined, Fleet, Lost
from clients.policy.enforcement import Enforcement, Refused
from clients.policy.policy import read_policy
from fedpers.errors import ConfigError
from fedpers.failures import FAILED, POLICY
from fedpers.files import lock

ARRIVE = 600.0  # seconds in which all of a message has to be here
QUICKEST, SLOWEST = 0.1, 3.0  # seconds between two questions for messages
CALM = 20  # it waits for a twentieth of the time in which there was nothing
KNOWN_AGAIN = 3 * BEAT  # seconds until a SuperLink has noticed that a killed node is away
KEPT = 600.0  # seconds for which a reply is kept for a SuperLink that is gone
SOON, RETRY = 0.2, 5.0  # seconds between two attempts, at first and at most
TOOK = "{}: {:.2f} s of work, {:.2f} s to fetch it, {:.2f} s to send the answer"
T = TypeVar("T")

LOCK = ".node.lock"
NO = (400, 401, 403)  # what HTTP calls those whom a server does not want


@dataclass(frozen=True)
class Executor:
    """What answers a device's messages: the installed app, under the policy of the data's owner.

    Attributes:
        device: whose; a device has a policy, or nothing is answered.
    """

    device: Device

    def answer(self, message: Message) -> Message:
        """The reply to a message, whatever it is."""
        known, own = message.metadata, self.device.described
        context = Context(known.run_id, known.dst_node_id, own, RecordDict(), {})
        try:
            return app(message, context)
        except Exception as error:
            self.note(f"message of type {message.metadata.message_type!r}", error)
            return _failed(message, FAILED)

    def refuse(self, message: Message, why: str) -> Message:
        """The reply to a message of which too much came, or what is none."""
        with suppress(Refused):
            Enforcement(self.device).refuse(message.metadata.message_type, why)
        return _failed(message, POLICY)

    def note(self, what: str, error: Exception) -> None:
        """Write down at home why something failed."""
        Reasons(leave=False, home=self.device.state).note(what, error)


class Resident:
    """A node that is joined to a SuperLink, until it is stopped.

    Args:
        fleet: its side of the Fleet API.
        executor: what answers.
        show: called with each line to show.
        beat: seconds between two signs of life.
    """

    def __init__(
        self,
        fleet: Fleet,
        executor: Executor,
        show: Callable[[str], None] = print,
        beat: float = BEAT / 2,
    ) -> None:
        self.fleet, self.executor, self.show, self.beat = fleet, executor, show, beat
        self.stopped, self.forgotten = threading.Event(), threading.Event()

    def run(self) -> None:
        """Answer messages until ``stopped`` is set; or until ``KeyboardInterrupt``, wherever it
        strikes, as all that counts is on the disk.

        Raises:
            ConfigError: there is no policy, another node works in the device's state folder, or the
                SuperLink does not want this node.
            ClientError: that folder is another client's, or cannot be written.
        """
        device = self.executor.device
        read_policy(device.policy)
        device.claim()
        try:
            held = lock(device.state / LOCK)
        except BlockingIOError:
            takes = "a folder that no other node works in"
            raise ConfigError("--state", str(device.state), takes) from None
        with held:
            self._serve()

    def _serve(self) -> None:
        self._join(first=True)
        beats = threading.Thread(target=self._beat, daemon=True)
        beats.start()
        quiet = time.monotonic()
        try:
            while not self.stopped.is_set():
                if self._one():
                    quiet = time.monotonic()
                idle = (time.monotonic() - quiet) / CALM
                self.stopped.wait(min(max(idle, QUICKEST), SLOWEST))
        finally:
            self.stopped.set()
            with suppress(Lost, Declined, Beyond):
                self.fleet.leave()
            self.fleet.close()

    def _one(self) -> bool:
        """Answer the message that waits, if one does."""
        if self.forgotten.is_set():
            self._join()
        try:
            asked = self.fleet.ask()
            if asked is None:
                return False
            began = time.monotonic()
            reply, work = self._insist(lambda: self._reply(asked))
            came = time.monotonic()
            self._insist(lambda: self.fleet.answer(reply, work))
            beside = came - began - work, time.monotonic() - came
            self.show(TOOK.format(asked.message.metadata.message_type, work, *beside))
        except Lost as error:
            self._lost(error)
            return False
        except Beyond as error:
            self.show(f"not taken: {error}")
            return False
        except Declined as error:
            self.show(f"not wanted: {error}")
            if error.status in NO:
                self.forgotten.set()
            return False
        except ConfigError:
            raise
        except Exception as error:  # whatever a server may have thought of: it costs its message
            self.executor.note("a message could not be answered", error)
            return False
        return True

    def _reply(self, asked: Asked) -> tuple[Message, float]:
        """The reply to a message, and the seconds that it was worked on."""
        try:
            most = read_policy(self.executor.device.policy).bytes
            message = self.fleet.take(asked, most, ARRIVE)
        except (Beyond, ConfigError) as error:
            self.fleet.drop(asked)
            return self.executor.refuse(asked.message, str(error)), 0.0
        began = time.monotonic()
        return self.executor.answer(message), time.monotonic() - began

    def _insist(self, call: Callable[[], T]) -> T:
        """Call again when a SuperLink that was gone is there again, for some time.

        Raises:
            Lost: it took too long.
        """
        until = time.monotonic() + KEPT
        for _ in self._attempts():
            try:
                return call()
            except Lost as error:
                if time.monotonic() > until:
                    raise
                self._lost(error)
        raise Lost("it is stopped")

    def _lost(self, error: Lost) -> None:
        """Wait until the SuperLink is there again, and be known to it."""
        self.show(f"the SuperLink is gone ({error})")
        for _ in self._attempts():
            try:
                if not self.fleet.beat():
                    self._join()
                break
            except Lost:
                continue
            except (Declined, Beyond):
                self._join()
                break
        self.show("the SuperLink is there again")

    def _join(self, *, first: bool = False) -> None:
        """Join, as often as it takes for a SuperLink to notice that this node was away.

        Raises:
            ConfigError: it does not want this node.
        """
        until, said = time.monotonic() + KNOWN_AGAIN, ""
        for _ in self._attempts():
            try:
                node = self.fleet.join()
                self.forgotten.clear()
                self.show(f"joined as node {node}")
                return
            except (Lost, Declined, Beyond) as error:
                late = time.monotonic() > until
                if isinstance(error, Declined) and (error.status in NO or late):
                    takes = "the address of a SuperLink that knows this node's key"
                    cure = "`flwr supernode register KEY.pub`; and compare clocks"
                    raise ConfigError("--server", str(error), takes, cure) from None
                if first and "certificate verify failed" in str(error):
                    takes = "a server whose certificate --root-certificates have signed"
                    raise ConfigError("--server", str(error), takes) from None
                if str(error) != said:
                    said = str(error)
                    self.show(f"not joined yet: {said}")

    def _attempts(self) -> Iterator[None]:
        """As many as it takes until it is stopped, farther and farther apart."""
        pause = SOON
        while not self.stopped.is_set():
            yield
            self.stopped.wait(pause)
            pause = min(2 * pause, RETRY)

    def _beat(self) -> None:
        """Give signs of life, also while a message is at work."""
        while not self.stopped.wait(self.beat):
            with suppress(Lost, Declined, Beyond):  # the other thread meets that too
                if not self.fleet.beat():
                    self.forgotten.set()


def _failed(message: Message, word: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, word), reply_to=message)
