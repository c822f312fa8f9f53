"""A device's policy: the file in which the owner of its data says what may be asked of it."""

from __future__ import annotations

import os
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from fedpers.channels.build import HIDING
from fedpers.errors import ConfigError, line_of
from fedpers.once import OnceLoader

LARGEST = 2**16  # bytes of the file
KINDS = (
    *("roster", "train", "channel", "poll", "pool", "method"),
    *("baseline", "evaluate", "newcomers", "export"),
)
HEAD = """\
# What this device may be asked, whatever the server says. It belongs to the owner of the data.
# Every key has to be there; a key that is not known here is refused, and so is the device's work
# while this file is missing, contradicts itself, or may be written by others than its owner.
"""


def rule(says: str, default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A key of the file: what it says, and for numbers what range they have."""
    return field(default=default, metadata={"says": says, "low": low, "high": high})


@dataclass(frozen=True)
class Policy:
    """What a device's owner allows; the defaults are strict, and allow nothing without an operator.

    ``epsilon``, ``delta``, ``unit`` and ``least_noise`` are None where runs may do without
    differential privacy, and then all of them are.
    """

    operators: tuple[str, ...] = rule(
        "Who may ask: the operators' public keys, as `fedpers operator new` shows them.", ()
    )
    epsilon: float | None = rule(
        "Differential privacy: the most that may ever be spent, by all runs together. null here\n"
        "# and for the next three: runs may do without.",
        1.0,
        1e-6,
        1e6,
    )
    delta: float | None = rule("The largest delta; a run has to name its own.", 1e-5, 1e-30, 0.5)
    unit: str | None = rule(
        "What is protected: one `example`, from the server too; or all of this `client`'s data\n"
        "# from everybody but the server.",
        "example",
    )
    least_noise: float | None = rule(
        "The least noise of a training step, in multiples of the largest gradient.", 0.5, 0, 1e6
    )
    channels: tuple[str, ...] = rule("What updates may pass through.", HIDING)
    cohort: int = rule("The fewest clients that a sum is made of.", 3, 1, 10**6)
    methods: tuple[str, ...] = rule("Methods. What is not on a list is not imported.", ("fedavg",))
    tasks: tuple[str, ...] = rule("Tasks.", ("classification",))
    models: tuple[str, ...] = rule("Models.", ("mlp",))
    mechanisms: tuple[str, ...] = rule("Mechanisms of noise.", ("gaussian",))
    messages: tuple[str, ...] = rule(
        f"Kinds of messages, of: {', '.join(KINDS)}.",
        ("roster", "train", "channel"),
    )
    diagnostics: bool = rule(
        "Whether losses, results and exact times may leave, without noise.", False
    )
    runs: int = rule("Runs, ever.", 1, 1, 10**6)
    rounds: int = rule("Rounds of a run.", 100, 1, 10**6)
    rounds_a_day: int = rule("Trainings in a day (UTC), of all runs.", 100, 1, 10**6)
    hours: tuple[int, ...] = rule(
        "From which hour to which (UTC), as [22, 6] for the night.", (0, 24), 0, 24
    )
    steps: int = rule(
        "The largest number of steps, epochs or batches that settings may name.", 1000, 1, 10**9
    )
    scalars: int = rule("The largest model, in scalars.", 10**7, 1, 10**12)
    bytes: int = rule("The largest message, in bytes.", 2**26, 1, 2**40)
    memory: int = rule(
        "The most memory of the node's process, in bytes, as read when it starts; that of an\n"
        "# accelerator is not counted.",
        2**33,
        2**28,
        2**50,
    )

    @property
    def private(self) -> bool:
        """Whether differential privacy is asked for."""
        return self.epsilon is not None


class PolicyError(ConfigError):
    """A policy under which nothing runs."""


def read_policy(path: Path | None) -> Policy:
    """The policy in a file.

    Raises:
        PolicyError: there is none; others than its owner may write it; it cannot be read; a key is
            unknown, missing or has an impossible value; or it contradicts itself.
    """
    if path is None:
        raise PolicyError("policy (node config)", None, "a file", "`fedpers device policy new`")
    try:
        given = yaml.load(_text_of(path), Loader=OnceLoader)
    except OSError as error:
        raise PolicyError("policy", str(path), f"a file that can be read ({error.strerror})") from (
            None
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = line_of(error)
        raise PolicyError("policy", str(path), f"valid YAML ({line[:200]})") from None
    if not isinstance(given, dict):
        raise PolicyError("policy", str(path), "a mapping of keys")
    known = {f.name: f for f in fields(Policy)}
    for name in [*given, *known]:
        if name not in known or name not in given:
            got = "an unknown key" if name in given else "no such key"
            takes = "a key of a policy" if name in given else "every key of a policy"
            raise PolicyError(f"policy.{name}", got, takes, f"it has {', '.join(known)}")
    policy = Policy(**{name: _value(known[name], given[name]) for name in known})
    _check(policy)
    return policy


def write_policy(path: Path, **rules: Any) -> None:
    """Write a policy with what its keys say: the strict one, but for ``rules``.

    Raises:
        ConfigError: there is such a file already.
        PolicyError: it would be refused.
    """
    policy = Policy(**rules)
    _check(policy)
    text = HEAD
    for key in fields(Policy):
        value = asdict(policy)[key.name]
        value = list(value) if isinstance(value, tuple) else value
        told = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n")
        text += f"\n# {key.metadata['says']}\n{key.name}: {told}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise ConfigError("--out", str(path), "a file that is not there yet") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)


def _text_of(path: Path) -> str:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found, folder = os.fstat(file.fileno()), os.stat(path.parent)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise PolicyError("policy", str(path), f"a plain file of at most {LARGEST} bytes")
        others = stat.S_IWGRP | stat.S_IWOTH
        loose = folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX
        if found.st_mode & others or loose or found.st_uid not in (0, os.geteuid()):
            takes = "a file that nobody but its owner can write"
            raise PolicyError("policy", str(path), takes, f"chmod go-w {path}, and its folder")
        return file.read(LARGEST).decode("utf-8")


def _value(key: Any, value: Any) -> Any:
    """A value of the type that the key's default has; lists become tuples."""
    low, high = key.metadata["low"], key.metadata["high"]

    def refuse(takes: str) -> None:
        raise PolicyError(f"policy.{key.name}", value, takes)

    if value is None and key.type.endswith("None"):
        return None
    if key.type == "bool" and type(value) is not bool:
        refuse("true or false")
    if key.type.startswith("str") and type(value) is not str:
        refuse("a text")
    if key.type.startswith("tuple"):
        of = str if low is None else int
        if type(value) is not list or any(type(one) is not of for one in value):
            refuse(f"a list of {'texts' if of is str else 'whole numbers'}")
        value = tuple(value)
    if low is not None:
        numbers = value if isinstance(value, tuple) else (value,)
        whole = not key.type.startswith("float")
        types = (int,) if whole else (int, float)
        if any(type(n) not in types or not low <= n <= high for n in numbers):
            refuse(f"{'whole numbers' if whole else 'a number'} from {low:g} to {high:g}")
    return value


def _check(policy: Policy) -> None:
    """Refuse a policy under which nothing could run, or that says two things at once.

    Raises:
        PolicyError: naming the key.
    """

    def refuse(key: str, takes: str) -> None:
        raise PolicyError(f"policy.{key}", getattr(policy, key), takes)

    for key in ("operators", "channels", "methods", "tasks", "models", "messages"):
        if not getattr(policy, key):
            refuse(key, "at least one, for nothing can run without")
    for key in policy.operators:
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            refuse("operators", "public keys of 64 hexadecimal digits")
    if set(policy.messages) - set(KINDS):
        refuse("messages", f"some of {', '.join(KINDS)}")
    if "roster" not in policy.messages:
        refuse("messages", "roster among them, which every run begins with")
    for key in ("delta", "unit", "least_noise"):
        if (getattr(policy, key) is None) is policy.private:
            refuse(key, "null where epsilon is null, and only there")
    if policy.private and policy.unit not in ("example", "client"):
        refuse("unit", "example or client")
    if policy.private and not policy.mechanisms:
        refuse("mechanisms", "at least one, as epsilon is a number")
    if policy.private and "method" in policy.messages:
        refuse("messages", "no `method` where epsilon is a number, as no noise covers its answers")
    if "channel" not in policy.messages and set(policy.channels) <= set(HIDING):
        refuse("messages", "channel among them, as updates may only pass hidden")
    if len(policy.hours) != 2 or policy.hours[0] == policy.hours[1]:
        refuse("hours", "two different hours")
