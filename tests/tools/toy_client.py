"""A ClientApp for tests: adds its partition id, remembers how often it was asked, or fails."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("add")
def add(message: Message, context: Context) -> Message:
    number = message.content["number"]
    number["value"] += context.node_config["partition-id"]
    return Message(RecordDict({"number": number}), reply_to=message)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    asked = context.state.metric_records.get("asked", MetricRecord({"times": 0}))
    context.state["asked"] = MetricRecord({"times": asked["times"] + 1})
    return Message(RecordDict({"number": context.state["asked"]}), reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise ValueError("no answer")
