"""Templates for supervision: systemd units, a federation's file, a container file."""

from __future__ import annotations

from pathlib import Path

from fedpers.errors import ConfigError
from fedpers.federation import read_federation
from simulations.devices.gateway import configuration

# What none of the services needs.
HARDENED = """\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""

SUPERLINK = f"""\
[Unit]
Description=Flower SuperLink for fedpers, behind its gateway
After=network.target

[Service]
# Who reaches its port may have it run code: it listens on the loopback of a network that is its own
# and the gateway's, where no other user of this machine comes.
PrivateNetwork=yes
User=fedpers
StateDirectory=fedpers
StateDirectoryMode=0700
WorkingDirectory=/var/lib/fedpers
Environment=HOME=/var/lib/fedpers
Environment=FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
Environment=FLWR_TELEMETRY_ENABLED=0
# Certificates as your organisation issues them; the database keeps the nodes' keys over a restart.
ExecStart=/opt/fedpers/bin/flower-superlink --host 127.0.0.1 --port 9091 \\
  --ssl-ca-certfile /etc/fedpers/ca.crt --ssl-certfile /etc/fedpers/superlink.pem \\
  --ssl-keyfile /etc/fedpers/superlink.key --enable-supernode-auth \\
  --database /var/lib/fedpers/superlink.db
Restart=always
RestartSec=5
PrivateDevices=yes
{HARDENED}
[Install]
WantedBy=multi-user.target
"""

SOCKET = """\
[Unit]
Description=Where fedpers' devices come to

[Socket]
# As `listen` in the federation's file.
ListenStream=0.0.0.0:9092

[Install]
WantedBy=sockets.target
"""

GATEWAY = f"""\
[Unit]
Description=nginx before fedpers' SuperLink: a node's calls, and no other
Requires=fedpers-gateway.socket fedpers-superlink.service
After=fedpers-gateway.socket fedpers-superlink.service
JoinsNamespaceOf=fedpers-superlink.service

[Service]
# fedpers devices gateway /etc/fedpers/federation.yaml > /etc/fedpers/gateway.conf
# systemctl reload fedpers-gateway: for another federation, or another list of the revoked
PrivateNetwork=yes
# The socket is opened in the machine's network, and handed over as from an older nginx.
Environment=NGINX=3;
User=fedpers-gateway
StateDirectory=fedpers-gateway
StateDirectoryMode=0700
WorkingDirectory=/var/lib/fedpers-gateway
Environment=HOME=/var/lib/fedpers-gateway
ExecStart=/usr/sbin/nginx -p /var/lib/fedpers-gateway -c /etc/fedpers/gateway.conf -e stderr \\
  -g 'daemon off;'
ExecReload=/bin/kill -HUP $MAINPID
KillSignal=SIGQUIT
TimeoutStopSec=40
Restart=always
RestartSec=5
PrivateDevices=yes
MemoryDenyWriteExecute=yes
{HARDENED}
[Install]
WantedBy=multi-user.target
"""

DEVICE = f"""\
[Unit]
Description=fedpers on a device, client %i
After=network-online.target
Wants=network-online.target

[Service]
# systemctl enable --now fedpers-device@clinic-7
# It runs what is installed here, whatever a server sends.
User=fedpers
StateDirectory=fedpers/%i
StateDirectoryMode=0700
WorkingDirectory=/var/lib/fedpers/%i
Environment=HOME=/var/lib/fedpers/%i
Environment=SERVER=gateway.example.org:9092
Environment=DATA=/data/%i.parquet
# OPTIONS=--keys /etc/fedpers/keys, where updates are encrypted under a common key
Environment=OPTIONS=
EnvironmentFile=-/etc/fedpers/%i.env
ExecStart=/opt/fedpers/bin/fedpers device run --server ${{SERVER}} \\
  --root-certificates /etc/fedpers/ca.crt --key /etc/fedpers/node.key \\
  --certificate /etc/fedpers/device.pem --certificate-key /etc/fedpers/device.key \\
  --client %i --data ${{DATA}} --state /var/lib/fedpers/%i \\
  --policy /etc/fedpers/policy.yaml $OPTIONS
Restart=always
RestartSec=15
{HARDENED}
[Install]
WantedBy=multi-user.target
"""

FEDERATION = """\
# The devices of a federation, and where its gateway is. `fedpers devices gateway` makes nginx's
# settings of it, and `federation=/etc/fedpers/federation.yaml` a run's rule: a device may speak for
# the clients of its line, and for no others.
devices: {}
#  clinic-7:                 # the common name of the device's certificate
#    key: /etc/fedpers/nodes/clinic-7.pub   # or the line itself: ecdsa-sha2-nistp384 AAAA...
#    clients: [clinic-7]     # without it, the one of the device's name
listen: 0.0.0.0:9092
superlink: 127.0.0.1:9091
certificate: /etc/fedpers/gateway.pem
certificate_key: /etc/fedpers/gateway.key
authority: /etc/fedpers/devices-ca.crt    # whose certificates devices have
revoked: /etc/fedpers/revoked.pem         # which of them it has revoked; once out of date, all
superlink_authority: /etc/fedpers/ca.crt
megabytes: 64
requests: 100    # a second, of each device
"""

DOCKERFILE = """\
# A device, on a CPU. Build it in a checkout of fedpers:
#   docker build -f Dockerfile -t fedpers .
#   docker run --restart=always -v /data:/data:ro -v fedpers-state:/state \\
#     -v /etc/fedpers:/etc/fedpers:ro -e CLIENT=clinic-7 -e DATA=/data/clinic.parquet \\
#     -e SERVER=gateway.example.org:9092 --read-only --tmpfs /tmp --cap-drop ALL \\
#     --security-opt no-new-privileges fedpers
FROM python:3.11-slim
RUN useradd --create-home fedpers && mkdir /state && chown fedpers /state
WORKDIR /opt/fedpers
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .
USER fedpers
ENV HOME=/state
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s \\
  CMD python -c "import os; os.kill(1, 0)"
CMD exec fedpers device run --server "$SERVER" --root-certificates /etc/fedpers/ca.crt \\
  --key /etc/fedpers/node.key --certificate /etc/fedpers/device.pem \\
  --certificate-key /etc/fedpers/device.key --client "$CLIENT" --data "$DATA" --state /state \\
  --policy /etc/fedpers/policy.yaml $OPTIONS
"""

FILES = {
    "fedpers-superlink.service": SUPERLINK,
    "fedpers-gateway.socket": SOCKET,
    "fedpers-gateway.service": GATEWAY,
    "fedpers-device@.service": DEVICE,
    "federation.yaml": FEDERATION,
    "Dockerfile": DOCKERFILE,
}
CONF = "gateway.conf"


def write_units(folder: Path, federation: Path | None = None) -> list[Path]:
    """Write the templates into ``folder``; their paths.

    Args:
        federation: the federation's file, if there is one, for the gateway's settings; without one
            they let nobody in.

    Raises:
        ConfigError: one is there already; or see ``read_federation``.
    """
    for name in (*FILES, CONF):
        if (folder / name).exists():
            takes = "a folder without these files"
            raise ConfigError("--out", str(folder), takes, f"remove {name} or name another folder")
    texts = dict(FILES)
    if federation is not None:
        texts["federation.yaml"] = federation.read_text(encoding="utf-8")
        texts["fedpers-gateway.socket"] = SOCKET.replace(
            "0.0.0.0:9092", read_federation(federation).listen
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    found = read_federation(federation or folder / "federation.yaml")
    (folder / CONF).write_text(configuration(found), encoding="utf-8")
    return [folder / name for name in (*texts, CONF)]
