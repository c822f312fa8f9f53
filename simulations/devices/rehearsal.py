"""A rehearsal of a deployment on this machine: ``fedpers devices demo``.

A SuperLink with TLS that knows its nodes' keys, and a SuperNode process for each device, with a
data file, a state folder, a policy and a key file of its own. What runs on them is what runs in
simulations.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509

from clients.node.access import Access
from clients.policy.policy import write_policy
from clients.policy.wishes import just
from fedpers.config import Config
from fedpers.errors import RunError
from fedpers.federation import Federation, read_federation
from fedpers.permit import Permit, new_operator, public_of, read_operator, read_permit
from simulations.backends.bundle import write_bundle
from simulations.backends.flower import (
    CONNECTION,
    Space,
    flwr,
    follow,
    free_port,
    last_line,
    listens,
    popen,
    private_space,
)
from simulations.backends.launcher import CLIENTAPP, SERVERAPP, run_config
from simulations.devices.certificates import (
    Authority,
    Certificates,
    make_certificates,
    make_node_key,
)
from simulations.devices.gateway import Gateway
from strategies.base import find_strategy

DAY = 86_400.0  # seconds
RUNS = 100  # that an owner of a rehearsal allows
NOBODY = "0" * 64  # an operator who is nobody, until an owner allows a run


@dataclass
class Rehearsal:
    """A SuperLink that runs, and its nodes.

    Attributes:
        space: its folder and processes.
        port: the SuperLink's.
        certificates: of the SuperLink.
        nodes: by client, its SuperNode's process.
        permits: by run's folder, the file with its permit.
        authority: of the devices' certificates.
        certified: by client, its device's certificate.
        gateway: before the SuperLink, if there is one.
    """

    space: Space
    port: int
    certificates: Certificates
    superlink: subprocess.Popen[bytes]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    permits: dict[Path, Path] = field(default_factory=dict)
    authority: Authority = field(default_factory=lambda: Authority("fedpers rehearsal's devices"))
    certified: dict[str, x509.Certificate] = field(default_factory=dict)
    gateway: Gateway | None = None

    def register(self, client: str) -> None:
        """Make a key for a client's node and have the SuperLink know it."""
        _, public = make_node_key(self.space.folder, f"node-{client}")
        flwr(self.space, "supernode", "register", str(public), CONNECTION, "--name", client)

    def certify(self, client: str) -> None:
        """Issue a certificate for a client's device."""
        certificate, key = self.certificate_of(client)
        self.certified[client] = self.authority.device(client, certificate, key)

    def certificate_of(self, client: str) -> tuple[Path, Path]:
        """The files of a client's certificate, and of its key."""
        return self.space.path(f"{client}.pem"), self.space.path(f"{client}.key")

    def access(self, certificate: tuple[Path, Path] | None, key: Path) -> Access:
        """How somebody comes to the gateway who has this certificate, and this node key."""
        assert self.gateway is not None
        address = f"127.0.0.1:{self.gateway.port}"
        return Access(address, self.certificates.ca, key, *(certificate or (None, None)))

    def open_gateway(self, clients: Iterable[str]) -> Federation:
        """Certify the registered devices of ``clients``, write the federation's file, and start the
        gateway for them.

        Raises:
            ConfigError: nginx is not installed.
        """
        folder = self.space.folder
        settings = {
            "superlink": f"127.0.0.1:{self.port}",
            "certificate": str(self.certificates.server),
            "certificate_key": str(self.certificates.server_key),
            "superlink_authority": str(self.certificates.ca),
            "authority": str(self.authority.write(folder / "devices-ca.crt")),
            "revoked": str(self.authority.revoke([], folder / "revoked.pem")),
            "devices": {client: {"key": f"node-{client}.pub"} for client in clients},
        }
        self.federation.write_text(json.dumps(settings), encoding="utf-8")  # which is YAML, too
        found = read_federation(self.federation)
        self.gateway = Gateway(self.space, found)
        for client in found.devices:
            self.certify(client)
        return found

    @property
    def federation(self) -> Path:
        """The federation's file."""
        return self.space.path("federation.yaml")

    def start_node(
        self,
        client: str,
        data: Path,
        keys: Path | None,
        *,
        trusts: Path | None = None,
        port: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a client's SuperNode; its state is kept from one start to the next.

        Args:
            client: its id.
            data: its file.
            keys: the folder with its ``client.key``.
            trusts: the authority whose certificates it accepts, if another than the right one.
            port: where it finds the SuperLink, if not at the SuperLink's own.
        """
        state = self.space.folder / f"state-{client}"
        config = {"client-id": client, "data": str(data), "state": str(state)}
        config["policy"] = str(self.policy_of(client))
        if keys is not None:
            config["keys"] = str(keys)
        home = self.space.folder / f"home-{client}"
        home.mkdir(exist_ok=True)
        options = [
            *("--superlink", f"127.0.0.1:{port or self.port}"),
            *("--root-certificates", str(trusts or self.certificates.ca)),
            *("--auth-supernode-private-key", str(self.space.folder / f"node-{client}")),
            *("--port", str(free_port())),
            *("--node-config", " ".join(f'{k}="{v}"' for k, v in config.items())),
        ]
        with self.log_of(client).open("ab") as log:
            command = ["flower-supernode", *options]
            node = popen(self.space, command, log, env={"FLWR_HOME": str(home)})
        self.nodes[client] = node
        return node

    def start_device(self, client: str, data: Path, keys: Path | None) -> subprocess.Popen[bytes]:
        """Start a client's own node, which runs what is installed here and no app that is sent.

        Args:
            client: the device's name.
            data: its file.
            keys: the folder with its ``client.key``.
        """
        folder, policy = self.space.folder, self.policy_of(client)
        if not policy.exists():
            write_policy(policy, operators=(NOBODY,))
        port = self.gateway.port if self.gateway else self.port
        options = [
            *("--server", f"127.0.0.1:{port}", "--root-certificates", str(self.certificates.ca)),
            *("--key", str(folder / f"node-{client}"), "--client", client),
            *("--data", str(data), "--state", str(folder / f"state-{client}")),
            *("--policy", str(policy)),
            *(("--keys", str(keys)) if keys else ()),
        ]
        if self.gateway:
            certificate, key = self.certificate_of(client)
            options += ["--certificate", str(certificate), "--certificate-key", str(key)]
        with self.log_of(client).open("ab") as log:
            node = popen(self.space, ["fedpers", "device", "run", *options], log, outside=True)
        self.nodes[client] = node
        return node

    def policy_of(self, client: str) -> Path:
        """The file of a client's policy; a node reads it whenever it is asked."""
        return self.space.folder / f"policy-{client}.yaml"

    def allow(self, config: Config, run_folder: Path) -> Config:
        """Be the operator, who signs the settings, and all owners, who allow just them.

        Returns:
            The settings, with their permit.
        """
        strategy, key = find_strategy(config), self.space.folder / "operator.key"
        if not key.exists():
            new_operator(key)
        operator, algorithm = read_operator(key), strategy.client_side()
        for client in self.nodes:
            self.policy_of(client).unlink(missing_ok=True)
            rules = {**just(config, algorithm), "operators": (public_of(operator),), "runs": RUNS}
            write_policy(self.policy_of(client), **rules)
        before = self.permits.get(run_folder)
        run = read_permit(before).said()["run"] if before else None
        path = self.permits[run_folder] = self.space.folder / f"permit-{len(self.permits)}.json"
        made = Permit.signed(
            operator, config, algorithm, strategy.param_names(), time.time() + DAY, run
        )
        made.write(path)
        return replace(config, permit=str(path))

    def log_of(self, client: str) -> Path:
        """What a client's SuperNode said."""
        return self.space.folder / f"node-{client}.log"

    def run(
        self,
        config: Config,
        run_folder: Path,
        show: Callable[[str], None],
        *,
        resume: bool = False,
    ) -> None:
        """Run an app to its end.

        Args:
            resume: go on with the run that is in ``run_folder``.

        Raises:
            FedpersError: a mistake that the user can mend.
            RunError: the run did not complete.
        """
        space, config = self.space, self.allow(config, run_folder)
        settings, events = space.path("settings.yaml"), space.path("events.jsonl")
        settings.write_text(config.to_yaml(), encoding="utf-8")
        events.unlink(missing_ok=True)  # an earlier run's
        write_bundle(
            space.path("app"),
            serverapp=SERVERAPP,
            clientapp=CLIENTAPP,
            run_config=run_config(settings, run_folder, resume),
            events=events,
            search=Path.cwd(),
        )
        answer = flwr(space, "run", str(space.path("app")), CONNECTION)
        follow(space, str(answer["run-id"]), self.superlink, show, verbose=False)


@contextmanager
def rehearsal(*, closed: bool = False) -> Iterator[Rehearsal]:
    """A SuperLink on loopback, with TLS and node authentication. All of it ends with the block.

    Args:
        closed: the SuperLink is in a network of its own, where the system gives one, and nodes
            reach it through the gateway alone.
    """
    with private_space("" if closed else "for nodes that come without a gateway") as space:
        certificates = make_certificates(space.folder)
        for _ in range(3):  # another process may take the port before the SuperLink does
            port = free_port()
            options = [
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--ssl-ca-certfile", str(certificates.ca)),
                *("--ssl-certfile", str(certificates.server)),
                *("--ssl-keyfile", str(certificates.server_key)),
                *("--enable-supernode-auth", "--database", str(space.path("superlink.db"))),
            ]
            with space.path("superlink.log").open("ab") as log:
                superlink = popen(space, ["flower-superlink", *options], log)
            if listens(space, superlink, port):
                break
        else:
            said = space.path("superlink.log").read_text(encoding="utf-8", errors="replace")
            raise RunError(f"Flower's SuperLink did not start: {last_line(said)}")
        lines = [
            f"[superlink.{CONNECTION}]",
            f'address = "127.0.0.1:{port}"',
            f"root-certificates = {json.dumps(str(certificates.ca))}",
        ]
        home = space.path("home").joinpath("config.toml")
        home.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield Rehearsal(space, port, certificates, superlink)


@dataclass
class Files:
    """What a rehearsal needs on disk.

    Attributes:
        config: the settings, with the server's own paths.
        data: by client, its file.
        keys: by client, the folder with its key file.
    """

    config: Config
    data: dict[str, Path]
    keys: dict[str, Path]


def make_files(config: Config, folder: Path) -> Files:
    """Deal scikit-learn's digits to devices, publish a part, and make encryption keys."""
    import numpy as np

    from fedpers.channels.build import with_keys
    from fedpers.config import load_config
    from fedpers.data import load_data

    count = config.strategy.min_clients
    dealt = load_data(load_config(None, [f"data.clients={count}", "data.partition.alpha=0.5"]))
    public = folder / "public.npz"
    np.savez(public, x=dealt.public.x.numpy(), y=dealt.public.y.numpy())
    names = [f"device-{client}" for client in dealt.clients]
    data = {}
    for name, client in zip(names, dealt.clients, strict=True):
        own = dealt.client(client)
        data[name] = folder / f"{name}.npz"
        parts = (own.train, own.val, own.test)
        x, y = (np.concatenate([getattr(p, which).numpy() for p in parts]) for which in "xy")
        np.savez(data[name], x=x, y=y)
    settings = replace(config, data=replace(config.data, path=str(public)))
    strategy, keys = find_strategy(settings), {name: folder / f"keys-{name}" for name in names}
    needs = strategy.needs(strategy.check(settings, dealt))
    settings = with_keys(settings, needs, count, folder / "server-keys", keys)
    made = {name: path for name, path in keys.items() if path.is_dir()}
    return Files(settings, data, made)
