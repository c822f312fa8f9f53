"""A ServerApp for tests: pings every node, then ends as the environment variable TOY says."""

import logging
import os
import time
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedpers.errors import ConfigError, RunError

app = ServerApp()
log = logging.getLogger("fedpers")
log.setLevel(logging.INFO)


@app.main()
def main(grid: Grid, context: Context) -> None:
    log.info("started in %s with %s", os.listdir(), context.run_config["run-dir"])
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    question = RecordDict({"number": MetricRecord({"value": 40})})
    messages = [Message(question, dst_node_id=node, message_type="query.add") for node in nodes]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
    answers = [replies[node].content["number"]["value"] for node in nodes]
    log.info("answers %s", sorted(answers))
    end = os.environ.get("TOY", "complete")
    if end == "raise":
        raise ValueError("boom\nand more")
    if end == "user":
        raise ConfigError("data.clients", 0, "an integer >= 1")
    if end == "run":
        raise RunError("nobody is left")
    if end == "exit":
        raise SystemExit(5)
    if end == "wait":
        time.sleep(600)
    if end.startswith("/"):  # once somebody has made this file
        while not Path(end).exists():
            time.sleep(0.1)
