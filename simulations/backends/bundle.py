"""The Flower App that the launcher submits: two modules that load the installed package's apps.

So the code that runs is the code that is installed, from a wheel or from a checkout, and what the
ServerApp says and how it ends reaches the launcher through a file, apart from Flower's own log.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpers.errors import FedpersError, RunError, line_of

_MODULE = """\
from simulations.backends.bundle import {loader}

app = {loader}({arguments})
"""


def write_bundle(
    folder: Path,
    *,
    serverapp: str,
    clientapp: str,
    run_config: dict[str, str],
    events: Path,
    search: Path,
) -> None:
    """Write a Flower App into ``folder``, which must be there.

    Args:
        folder: for ``pyproject.toml`` and two modules.
        serverapp: ``package.module:app`` of the ServerApp.
        clientapp: the same of the ClientApp.
        run_config: what the ServerApp finds in ``context.run_config``.
        events: the file that the ServerApp's log and outcome are written to.
        search: a folder to look for plug-ins in, after all others.
    """
    server = f"{serverapp!r}, events={str(events)!r}, search={str(search)!r}"
    client = f"{clientapp!r}, search={str(search)!r}"
    modules = {
        "fedpers_server": _MODULE.format(loader="watched", arguments=server),
        "fedpers_client": _MODULE.format(loader="load_app", arguments=client),
    }
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    lines = [
        "[project]",
        'name = "fedpers-run"',
        'version = "0.1.0"',
        "dependencies = []",
        "[tool.flwr.app]",
        'publisher = "fedpers"',
        "[tool.flwr.app.components]",
        'serverapp = "fedpers_server:app"',
        'clientapp = "fedpers_client:app"',
        "[tool.flwr.app.config]",
        # A JSON text is a TOML basic string too.
        *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in run_config.items()),
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_app(reference: str, *, search: str) -> Any:
    """The app at ``package.module:name``. Plug-ins are looked for in ``search`` as well."""
    # Last, so that a user's folder `data` or `clients` hides nobody's package. Flower hands this
    # process's path on to Ray's workers.
    if search not in sys.path:
        sys.path.append(search)
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def watched(reference: str, *, events: str, search: str) -> ServerApp:
    """The ServerApp at ``reference``; its log lines and its outcome go to the file ``events``."""
    path = Path(events)
    logging.getLogger("fedpers").addHandler(_EventHandler(path))
    watcher = ServerApp()

    @watcher.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            load_app(reference, search=search)(grid, context)
        except BaseException as error:
            _write(path, outcome=outcome_of(error))
            # Flower counts a SystemExit in a ServerApp as success.
            if not isinstance(error, Exception):
                raise RunError(f"{type(error).__name__}: {error}") from error
            raise
        _write(path, outcome={"ok": True})

    return watcher


def outcome_of(error: BaseException) -> dict[str, Any]:
    """How a run failed: ``error``, one line, and whether the ``user`` can mend it."""
    text = line_of(error)
    if isinstance(error, FedpersError):
        return {"ok": False, "error": text, "user": not isinstance(error, RunError)}
    name = type(error).__name__
    return {"ok": False, "error": f"the ServerApp raised {name}: {text}", "user": False}


class _EventHandler(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        _write(self.path, level=record.levelno, text=self.format(record))


def _write(path: Path, **event: Any) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
