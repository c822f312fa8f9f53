"""Templates for supervision: systemd units and a container file."""

from __future__ import annotations

from pathlib import Path

from fedpers.errors import ConfigError

SUPERLINK = """\
[Unit]
Description=Flower SuperLink for fedpers
After=network-online.target
Wants=network-online.target

[Service]
User=fedpers
# Certificates as your organisation issues them; the database keeps the nodes' keys over a restart.
Environment=FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
ExecStart=/opt/fedpers/bin/flower-superlink --host 0.0.0.0 --port 9092 \\
  --ssl-ca-certfile /etc/fedpers/ca.crt --ssl-certfile /etc/fedpers/server.pem \\
  --ssl-keyfile /etc/fedpers/server.key --enable-supernode-auth \\
  --database /var/lib/fedpers/superlink.db
WorkingDirectory=/var/lib/fedpers
Restart=always
RestartSec=5
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/var/lib/fedpers
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""

SUPERNODE = """\
[Unit]
Description=Flower SuperNode for fedpers, client %i
After=network-online.target
Wants=network-online.target

[Service]
# systemctl enable --now fedpers-supernode@clinic-7
User=fedpers
Environment=SUPERLINK=superlink.example.org:9092
Environment=DATA=/data/%i.parquet
EnvironmentFile=-/etc/fedpers/%i.env
# Answers wait this long to be picked up; the default is 3 s.
Environment=FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.5
ExecStart=/opt/fedpers/bin/flower-supernode --superlink ${SUPERLINK} \\
  --root-certificates /etc/fedpers/ca.crt --auth-supernode-private-key /etc/fedpers/node.key \\
  --node-config 'client-id="%i" data="${DATA}" state="/var/lib/fedpers/%i" \\
  keys="/etc/fedpers/keys" policy="/etc/fedpers/policy.yaml"'
WorkingDirectory=/var/lib/fedpers
# A node that was killed is refused until the SuperLink has noticed: it comes back by itself.
Restart=always
RestartSec=15
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/var/lib/fedpers
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""

DOCKERFILE = """\
# A device's SuperNode, on a CPU. Build it in a checkout of fedpers:
#   docker build -f Dockerfile -t fedpers .
#   docker run --restart=always -v /data:/data:ro -v fedpers-state:/state \\
#     -v /etc/fedpers:/etc/fedpers:ro -e CLIENT=clinic-7 -e DATA=/data/clinic.parquet \\
#     -e SUPERLINK=superlink.example.org:9092 fedpers
FROM python:3.11-slim
RUN useradd --create-home fedpers && mkdir /state && chown fedpers /state
WORKDIR /opt/fedpers
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .
USER fedpers
ENV FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.5
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s \\
  CMD python -c "import os; os.kill(1, 0)"
CMD exec flower-supernode --superlink "$SUPERLINK" --root-certificates /etc/fedpers/ca.crt \\
  --auth-supernode-private-key /etc/fedpers/node.key --node-config \\
  "client-id='$CLIENT' data='$DATA' state='/state' \\
  keys='/etc/fedpers/keys' policy='/etc/fedpers/policy.yaml'"
"""

FILES = {
    "fedpers-superlink.service": SUPERLINK,
    "fedpers-supernode@.service": SUPERNODE,
    "Dockerfile": DOCKERFILE,
}


def write_units(folder: Path) -> list[Path]:
    """Write the templates into ``folder``; their paths.

    Raises:
        ConfigError: one is there already.
    """
    for name in FILES:
        if (folder / name).exists():
            takes = "a folder without these files"
            raise ConfigError("--out", str(folder), takes, f"remove {name} or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in FILES]
