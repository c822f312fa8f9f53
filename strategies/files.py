"""What a run leaves: times, bytes, and the files of its folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from flwr.app import Message

from fedpers.channels.base import State
from fedpers.channels.wire import Answers
from fedpers.config import Config
from fedpers.evaluation import ClientResult, RunFolder, build_report, new_run_id, write_html
from fedpers.evaluation.report import select_round
from fedpers.evaluation.shown import with_unit
from fedpers.files import flush, written
from fedpers.models.whitening import WHITENING
from fedpers.parts import Part, Parts
from fedpers.records import Row
from fedpers.tasks.base import Tally, task_named
from strategies.checkpoint import load_checkpoint

log = logging.getLogger("fedpers")

CHECKPOINT = "checkpoint"
GLOBAL = "global.safetensors"
KNOWN = "known.safetensors"


class RunFiles:
    """Times and bytes of a run, and the files of its folder."""

    def __init__(self, config: Config, path: Path | None = None, *, resume: bool = False) -> None:
        """Open a run's folder at ``path``, or a fresh one under ``output``.

        Args:
            resume: go on with the run that is in ``path``.
        """
        self.config, self.began, self.resumed = config, time.perf_counter(), resume
        self.headline = task_named(config.task)[0].headline()[1]
        path = path or Path(config.output).absolute() / new_run_id(config)
        self.folder = RunFolder(path, config, resume=resume)
        self.evaluations: dict[int, list[ClientResult]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.seconds = dict.fromkeys(("train", "combine", "encrypt", "decrypt", "evaluate"), 0.0)
        self.client_rounds = 0
        self._line: dict[str, Any] = {}

    def restore(self, load: Callable[[State], None], tally: type[Tally]) -> int:
        """Have ``load`` take up the last checkpoint, and take up the lines of the rounds up to
        there; returns that round."""
        done = load_checkpoint(self.folder.path / CHECKPOINT, load)
        lines, self.evaluations = self.folder.read(done, tally)
        for line in lines:
            self._add(line)
        log.info("resumed after round %d", done)
        return done

    def _add(self, line: dict[str, Any]) -> None:
        self.rounds.append(line)
        self.client_rounds += line["answered"]
        for stage, seconds in {**line["seconds"], **line["encryption_seconds"]}.items():
            if stage in self.seconds:
                self.seconds[stage] += seconds

    def trained(
        self,
        server_round: int,
        answers: Answers,
        answered: int,
        messages: list[Message],
        started: float,
    ) -> None:
        """Note a round's training: who answered, seconds and bytes."""
        now, came = time.perf_counter(), answers.complete
        down = sum(
            len(a.data)
            for m in messages
            for r in m.content.array_records.values()
            for a in r.values()
        )
        self._line = {
            "round": server_round,
            "answered": answered,
            "failed": dict(answers.failures),
            "seconds": {"train": came - started, "combine": now - came, "evaluate": 0.0},
            # Of the nodes' time within these.
            "encryption_seconds": {"encrypt": answers.encrypt, "decrypt": answers.decrypt},
            "uplink_bytes": answers.nbytes,
            "downlink_bytes": down,
        }
        if answers.failures:
            self.folder.log_clients(server_round, [], answers.failures)

    def told(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Note the method's own numbers that clients reported, by client, if there are any."""
        if numbers := {client: r["method"] for client, r in reports.items() if r.get("method")}:
            self._line["reports"] = numbers

    def evaluated(
        self,
        server_round: int,
        results: list[ClientResult],
        failures: dict[str, str],
        started: float,
    ) -> None:
        """Note an evaluation's results, and why clients are missing from it."""
        self._line["seconds"]["evaluate"] = time.perf_counter() - started
        self._line["failed"] |= failures
        self.evaluations[server_round] = list(results)
        self.folder.log_clients(server_round, results, failures)

    def keep_global(self, server_round: int, parts: Row | None) -> None:
        """Save the global parts, if the report would take this evaluation as things stand.

        A method without any has no file, nor has a server that can read none (encryption); None
        where clients were evaluated with what was made for them.
        """
        wanted = "last" if self.config.privacy.enabled else self.config.evaluation.select
        taken, _ = select_round(self.evaluations, wanted, self.headline)
        if taken not in (None, server_round):
            return
        path, temporary = self.folder.path / GLOBAL, self.folder.path / f".{GLOBAL}.tmp"
        if not isinstance(parts, Parts) or not parts:
            path.unlink(missing_ok=True)  # an earlier evaluation's
            return
        with written(path):
            parts.save(temporary)
            flush(temporary)
            os.replace(temporary, path)

    def keep_known(self, whitening: Part) -> Parts:
        """Save how features are whitened, which whoever loads a model of the run needs, too."""
        parts = Parts({WHITENING: whitening})
        with written(self.folder.path / KNOWN):
            parts.save(self.folder.path / KNOWN)
        return parts

    def round_over(
        self, server_round: int, answers: Answers, metrics: dict[str, Any], scores: dict[str, Any]
    ) -> None:
        """Write the round's line to ``rounds.jsonl`` and to the log."""
        told = {name: value for name, value in metrics.items() if name in ("loss", "skipped")}
        line = {**self._line, **told, **scores}
        self._add(line)
        self.folder.log_round(line)
        total = sum(line["seconds"].values())
        shown = [f"round {server_round}/{self.config.rounds}", f"{line['answered']} clients"]
        if line["failed"]:
            shown.append(f"{len(line['failed'])} failed")
        if "skipped" in line:
            shown.append("nothing mixed")
        if "loss" in line:
            shown.append(f"loss {line['loss']:.3f}")
        shown += [
            f"{mode} {with_unit(self.headline, scores[mode], '')}"
            for mode in ("personal", "global")
            if mode in scores
        ]
        log.info("  ".join([*shown, f"{total:.1f} s"]))

    def report(self, failed: str | None, **figures: Any) -> dict[str, Any]:
        """Build and write ``report.json``, and the page.

        Args:
            failed: why the run has failed although it has come to its end, if so.
            figures: what ``fedpers.evaluation.build_report`` takes besides times and bytes, and
                ``similarity``, [K, K] of the clients.
        """
        up = sum(line["uplink_bytes"] for line in self.rounds)
        down = sum(line["downlink_bytes"] for line in self.rounds)
        each, similarity = max(self.client_rounds, 1), figures.pop("similarity")
        report = build_report(
            run_id=self.folder.path.name,
            config=self.config,
            evaluations=self.evaluations,
            communication={
                "uplink_bytes_per_client_round": up // each,
                "downlink_bytes_per_client_round": down // each,
                "total_bytes": up + down,
            },
            seconds={
                "total": time.perf_counter() - self.began,
                "round_median": median(sum(r["seconds"].values()) for r in self.rounds),
                **self.seconds,
            },
            **figures,
        )
        report["failed"] = failed
        if similarity is not None:
            report["similarity"] = similarity.tolist()
        self.folder.write_report(report)
        try:
            write_html(self.folder.path)
        except Exception as error:  # a picture of the run must not cost the run
            log.warning("report.html: %s", error)
        return report
