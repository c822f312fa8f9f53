"""What a server asks in a run, asked of a host on made-up data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from clients.node.answers import answer
from clients.node.host import ClientHost
from clients.node.telling import poll
from fedpers.parts import Part, Parts, combine
from fedpers.privacy.leaktest import Said, Transcript


def drive(
    host: ClientHost, rounds: Sequence[int], transcript: Transcript, *, full: bool
) -> Iterator[None]:
    """Ask a host what a server asks, and note what it answers; pauses after each round.

    Args:
        rounds: their numbers.
        full: with evaluations and newcomers in between.
    """
    clients = host.data.clients
    first = opening(host.algorithm.declared)
    sent = dict.fromkeys(clients, first)
    newcomer = host.data.held_out[0]
    for k, server_round in enumerate(rounds):
        asked = clients[:-1] if k == 1 else clients  # in the second round one sits out
        if host.algorithm.polls:
            asked_before(host, server_round, sent, transcript)
        uploads = train(host, server_round, asked, sent, transcript)
        if k == 0 and full and uploads:  # the message comes twice
            train(host, server_round, [*uploads], sent, transcript)
        sent = mixed(sent, uploads)
        if full:
            evaluate(host, server_round, sent, transcript)
            for batches in (0, 2):
                with suppress(Exception):
                    host.newcomer(newcomer, server_round, sent[clients[0]], batches)
        yield


def asked_before(
    host: ClientHost, server_round: int, sent: Mapping[str, Parts], transcript: Transcript
) -> None:
    """One round's poll of all clients."""
    for client, broadcast in sent.items():
        told: dict[str, Any] = {"failures": "no answer"}
        with suppress(Exception):
            told = poll(host, client, server_round, broadcast)
        transcript.say(Said("poll", server_round, client, Parts(), told))


def train(
    host: ClientHost,
    server_round: int,
    clients: Sequence[str],
    sent: Mapping[str, Parts],
    transcript: Transcript,
) -> dict[str, Parts]:
    """One round's message; what the clients upload, with what is derived of it."""
    body = message(server_round, clients)
    try:
        rows, answered = answer("train", host, [sent[client] for client in clients], body)
    except Exception:
        rows, answered = [], {"reports": {}, "failures": {"": "no answer"}}
    uploads = dict(zip([*answered["reports"]], rows, strict=True))
    transcript.say(Said("train", server_round, "", Parts(), answered))
    for client in clients:
        upload = uploads.get(client, Parts())
        transcript.say(Said("train", server_round, client, upload, {}))
        if upload and host.algorithm.derives:
            made = upload
            with suppress(Exception):
                made = host.with_derived(upload, host.algorithm.derives)
            transcript.say(Said("derived", server_round, client, made, {}))
    return uploads


def evaluate(
    host: ClientHost, server_round: int, sent: Mapping[str, Parts], transcript: Transcript
) -> None:
    """One evaluation of all clients that train."""
    clients = [*sent]
    body = message(server_round, clients)
    _, answered = answer("evaluate", host, [sent[client] for client in clients], body)
    transcript.say(Said("evaluate", server_round, "", Parts(), answered))


def message(server_round: int, clients: Sequence[str]) -> dict[str, Any]:
    """The body of a message that has a row for each client."""
    rows = {client: k for k, client in enumerate(clients)}
    return {"clients": list(clients), "rows": rows, "round": server_round}


def opening(initial: Parts) -> Parts:
    """Parts as a server would send them after some rounds: from the zeros that adapters and heads
    start at, nothing of the layers below would be seen."""
    moved: dict[str, Part] = {}
    for name, part in initial.items():
        drawn = torch.randn(part.layout.size, generator=torch.Generator().manual_seed(len(moved)))
        zero = part.vector == 0
        moved[name] = part.like(torch.where(zero, 0.1 * drawn, part.vector * (0.1 * drawn).exp()))
    return Parts(moved)


def mixed(sent: Mapping[str, Parts], uploads: Mapping[str, Parts]) -> dict[str, Parts]:
    """What is sent next: the mean of what came, for every other client half of it and half its own;
    what was sent before where nothing came that can be used."""
    layouts = next(iter(sent.values())).layouts
    # Of a bank's copies a client sends those that it trained.
    uploads = {client: sent[client] | upload for client, upload in uploads.items()}
    usable = {
        client: upload
        for client, upload in uploads.items()
        if upload.layouts == layouts and upload.first_not_finite() is None
    }
    if not usable:
        return dict(sent)
    (mean,) = combine(torch.full((1, len(usable)), 1 / len(usable)), [*usable.values()])
    half = torch.tensor([[0.5, 0.5]])
    return {
        client: combine(half, [mean, usable[client]])[0] if k % 2 and client in usable else mean
        for k, client in enumerate(sent)
    }
