"""What code remembers beside the parts it is given: where state can hide, and what it looks like.

A method's attributes, its class, what its functions close over, the module it is written in, the
buffers of its layers, the generators of torch, numpy and Python: from the same start, with the same
calls, each must be in the same state whatever the data were.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST = 100_000  # objects looked at
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
FOREIGN = ("logging", "threading", "_thread", "weakref", "concurrent", "multiprocessing")
GRADIENTS = ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample")
OURS = ("fedpers", "clients", "strategies")
LIBRARIES = (*OURS, "opacus")
TORCH = ("torch", "torch.nn.functional", "torch.nn.init", "torch.autograd", "torch.optim", "numpy")


def state_of(
    method: object, model: nn.Module, slots: Sequence[Tensor], packages: Sequence[str]
) -> dict[str, str]:
    """What is remembered now, by name: a digest of each value that can be reached.

    Args:
        method: the method, whose attributes and class are looked at.
        model: the resident model.
        slots: its tensors that are filled anew for each client, and say nothing.
        packages: the names of the top-level packages of code from outside.
    """
    roots: dict[str, object] = {type(method).__name__: method, "the model": model}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in packages and isinstance(module, ModuleType):
            roots[name] = module
    found = dict(_walk(roots, {id(tensor) for tensor in slots}, packages))
    found["torch's generator"] = _digest(torch.default_generator.get_state())
    _, key, *rest = np.random.get_state(legacy=True)
    found["numpy's generator"] = _digest(np.asarray(key)) + repr(rest)
    found["Python's generator"] = _digest(repr(random.getstate()))
    found["the environment"] = _digest(repr(sorted(os.environ.items())))
    return found


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """The name of something whose state is not the same; None if all is."""
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return name
    return None


def _walk(
    roots: Mapping[str, object], skipped: set[int], packages: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Breadth first, so that everything goes by its shortest name."""
    seen: dict[int, object] = {}
    queue = deque(roots.items())
    while queue and len(seen) < MOST:
        name, thing = queue.popleft()
        if isinstance(thing, PLAIN):
            yield name, _digest(thing)
            continue
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor | np.ndarray):
            if id(thing) not in skipped:
                yield name, _digest(thing)
            if isinstance(thing, Tensor):
                own = {k: v for k, v in vars(thing).items() if k not in GRADIENTS}
                queue.extend((f"{name}.{key}", value) for key, value in own.items())
            continue
        queue.extend(_within(name, thing, packages))
        if isinstance(thing, set | frozenset | dict | list | tuple | deque):
            yield f"len({name})", str(len(thing))


def _within(name: str, thing: object, packages: Sequence[str]) -> Iterator[tuple[str, object]]:
    """What a thing holds, by name; nothing of what is not the method's own."""
    home = getattr(thing, "__module__", None)
    home = home if isinstance(home, str) else type(thing).__module__
    ours = home.partition(".")[0] in packages
    if isinstance(thing, ModuleType):
        if thing.__name__.partition(".")[0] in packages:
            yield from ((f"{name}.{key}", value) for key, value in vars(thing).items())
    elif isinstance(thing, type):
        if ours:  # an abstract class's own caches grow whenever anything is held against it
            own = {key: value for key, value in vars(thing).items() if key != "_abc_impl"}
            yield from ((f"{name}.{key}", value) for key, value in own.items())
            yield from ((base.__name__, base) for base in thing.__bases__)
    elif isinstance(thing, MethodType):
        yield name, thing.__func__
        yield f"{name}.__self__", thing.__self__
    elif isinstance(thing, FunctionType):
        if ours:
            names = thing.__code__.co_freevars
            for key, cell in zip(names, thing.__closure__ or (), strict=True):
                yield f"{name}: {key}", cell
            yield f"{name}: defaults", [thing.__defaults__, thing.__kwdefaults__]
            yield from ((f"{name}.{key}", value) for key, value in vars(thing).items())
    elif isinstance(thing, BuiltinFunctionType):
        yield f"{name}.__self__", thing.__self__
    elif isinstance(thing, Mapping):
        for key, value in list(thing.items()):
            yield f"{name}[{key!r}]" if isinstance(key, PLAIN) else f"{name}[...]", value
            yield f"a key of {name}", key
    elif isinstance(thing, list | tuple | deque):
        yield from ((f"{name}[{k}]", value) for k, value in enumerate(thing))
    elif type(thing).__module__.partition(".")[0] not in FOREIGN:
        if hasattr(thing, "__dict__"):
            yield from ((f"{name}.{key}", value) for key, value in list(vars(thing).items()))
        if isinstance(thing, random.Random):
            yield f"{name}.getstate()", thing.getstate()
        yield type(thing).__name__, type(thing)
        others = (found for found in gc.get_referents(thing) if found is not vars_of(thing))
        yield from ((f"what {name} holds", found) for found in others)


def vars_of(thing: object) -> dict[str, Any] | None:
    """An object's attributes, if it has any."""
    return getattr(thing, "__dict__", None)


def _digest(thing: object) -> str:
    if isinstance(thing, Tensor):
        content = thing.detach().cpu().contiguous().view(-1)
        data = content.view(torch.uint8).numpy().tobytes() if content.numel() else b""
        head = f"{thing.dtype} {tuple(thing.shape)}"
    elif isinstance(thing, np.ndarray):
        data, head = thing.tobytes(), f"{thing.dtype} {thing.shape}"
    else:
        data, head = repr(thing).encode(), type(thing).__name__
    return hashlib.sha256(head.encode() + data).hexdigest()


def watch(*allowed: str) -> list[str]:
    """From now on to the end of this process: what was done to the world outside.

    Args:
        allowed: where files may be written.

    Returns:
        A list that grows: a line a file opened for writing, a connection, a process.
    """
    seen: list[str] = []

    def listen(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes) and _writes(args):
            path = os.fspath(os.fsdecode(args[0]))
            if not path.startswith((*allowed, os.devnull)) and "__pycache__" not in path:
                seen.append(f"a file is written, {path}")
        elif event in ("socket.connect", "socket.sendto"):
            seen.append("a connection is opened")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            seen.append("a process is started")

    sys.addaudithook(listen)
    return seen


def _writes(args: tuple[Any, ...]) -> bool:
    _, mode, flags = args
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


class Untouched:
    """The functions and classes of the libraries as they are now, to see whether one is replaced
    by code from outside."""

    def __init__(self) -> None:
        self._before = {where: dict(space) for where, space in _spaces()}

    def changed(self) -> str | None:
        """The name of one that is another now, or was not there; None if all are as they were."""
        for where, space in _spaces():
            before = self._before.get(where)
            if before is None:
                continue
            # Our own names may not change at all: they could be a place to keep things.
            ours = where.partition(".")[0] in OURS
            for name, value in before.items():
                if (ours or _code(value)) and space.get(name, value) is not value:
                    return f"{where}.{name}"
            for name in set(space) - set(before):
                if name.startswith("__"):  # Python's own, __warningregistry__ and __slotnames__
                    continue
                # A class can hide what it inherits.
                hides = isinstance(space, MappingProxyType) and _code(space[name])
                if hides or (ours and not isinstance(space[name], ModuleType)):
                    return f"{where}.{name}"
        return None


def _code(thing: object) -> bool:
    return callable(thing) or isinstance(thing, property | staticmethod | classmethod)


def _spaces() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The names in each library's modules and in the classes defined there."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in LIBRARIES and name not in TORCH:
            continue
        yield name, vars(module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name:
                yield f"{name}.{value.__name__}", vars(value)
    for kind in (Tensor, nn.Module, nn.Linear, nn.Parameter, torch.optim.SGD):
        yield kind.__name__, vars(kind)
