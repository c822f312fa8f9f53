"""Evaluation: results of clients, the gate, the files of a run and its report."""

from fedpers.evaluation.gate import choose, gated
from fedpers.evaluation.html import write_html
from fedpers.evaluation.report import build_report, report_table
from fedpers.evaluation.results import ClientResult
from fedpers.evaluation.run_folder import RunFolder, new_run_id

__all__ = [
    "ClientResult",
    "RunFolder",
    "build_report",
    "choose",
    "gated",
    "new_run_id",
    "report_table",
    "write_html",
]
