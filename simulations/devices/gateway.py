"""The gateway: nginx in front of a SuperLink, which passes the calls that a node needs and no
other. TLS 1.3, a client certificate that goes with its node key, limits of rate and size.

Its settings are written from the federation's file. A rehearsal also starts and ends it here.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import psutil

from fedpers.errors import ConfigError, RunError
from fedpers.federation import Federation
from simulations.backends.flower import POLL, Space, last_line, popen

# What a node that runs its own code asks for of Flower's Fleet API: neither `get-fab`, which gives
# out code, nor `register-node`, by which newcomers would let themselves in.
CALLS = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages"),
    *("push-messages", "pull-object", "push-object", "confirm-message-received"),
)
KEY_HEADER = "flwr-public-key"
BURST = 4  # seconds of a device's rate that may come at once
START = 20.0  # seconds for nginx to start, or to take up new settings
BRINGS = "apt-get install nginx-light"

CONF = """\
# Written by `fedpers devices gateway` from the federation's file; change that, and write it anew.
pid {pid};
error_log {error_log} warn;
worker_shutdown_timeout 30s;
events {{ worker_connections 4096; }}
http {{
  server_tokens off;
  log_format calls '$time_iso8601 $ssl_client_s_dn $request_method $uri $status $request_length';
  access_log {access_log} calls;
  client_body_temp_path {temporary}/body;
  proxy_temp_path {temporary}/proxy;
  fastcgi_temp_path {temporary}/fastcgi;
  uwsgi_temp_path {temporary}/uwsgi;
  scgi_temp_path {temporary}/scgi;

  # A certificate goes with one node key: 1 where the call's key is that of the certificate's name.
  map "$ssl_client_s_dn:$http_{header}" $known {{
    default 0;
{devices}  }}

  limit_req_zone $ssl_client_s_dn zone=calls:4m rate={requests}r/s;
  limit_conn_zone $ssl_client_s_dn zone=connections:4m;
  upstream superlink {{ server {superlink}; keepalive 32; }}

  server {{
    listen {listen} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate_key};
    ssl_protocols TLSv1.3;
    ssl_client_certificate {authority};
    ssl_verify_client on;
    ssl_verify_depth 1;
    ssl_crl {revoked};
    # A device that is revoked must not come back by a session it has had.
    ssl_session_tickets off;
    ssl_session_cache off;

    client_max_body_size {megabytes}m;
    client_header_timeout 10s;
    client_body_timeout 60s;
    large_client_header_buffers 4 8k;
    keepalive_timeout 75s;
    limit_req_status 503;  # a node comes again
    limit_conn_status 503;
    limit_conn connections 32;

    # No certificate, a wrong or a revoked one, or no TLS: the same word as to everybody else.
    error_page 495 496 497 = @closed;
    location @closed {{ return 403; }}
    location / {{ return 403; }}
    location ~ ^/v1/fleet/(?<call>{calls})$ {{
      limit_except POST {{ deny all; }}
      if ($request_uri != $uri) {{ return 403; }}
      if ($known = 0) {{ return 403; }}
      limit_req zone=calls burst={burst};
      # Nothing of an update is written here.
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_read_timeout 120s;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host localhost;
      proxy_set_header {key} $http_{header};
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {superlink_authority};
      proxy_ssl_name localhost;
      proxy_pass https://superlink/v1/fleet/$call;
    }}
  }}
}}
"""


def configuration(federation: Federation, folder: str = "/var/lib/fedpers-gateway") -> str:
    """nginx's settings for a federation.

    Args:
        folder: where nginx may write: its process id, its logs, its temporary files.
    """
    lines = ""
    for name, member in sorted(federation.devices.items()):
        lines += f'    "~^{re.escape(f"CN={name}:{shown(member.key)}")}$" 1;\n'
    return CONF.format(
        pid=f"{folder}/gateway.pid",
        error_log=f"{folder}/error.log",
        access_log=f"{folder}/access.log",
        temporary=folder,
        header=KEY_HEADER.replace("-", "_"),
        key=KEY_HEADER,
        devices=lines,
        calls="|".join(CALLS),
        burst=BURST * federation.requests,
        requests=federation.requests,
        megabytes=federation.megabytes,
        superlink=federation.superlink,
        listen=federation.listen,
        **{
            name: f'"{getattr(federation, name)}"'
            for name in (
                *("certificate", "certificate_key", "authority", "revoked"),
                "superlink_authority",
            )
        },
    )


def shown(key: bytes) -> str:
    """A node's public key as Flower's header has it."""
    return base64.b64encode(key).decode("ascii")


def has_nginx() -> bool:
    """Whether it is installed."""
    return _found() is not None


def nginx() -> str:
    """Where nginx is.

    Raises:
        ConfigError: it is not installed.
    """
    if (found := _found()) is None:
        raise ConfigError("nginx", None, "nginx 1.18 or later for the gateway", BRINGS)
    return found


def _found() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


class Gateway:
    """The gateway of a rehearsal: nginx, which runs until ``stop``.

    Attributes:
        port: where it listens, on loopback, in the machine's network.
    """

    def __init__(self, space: Space, federation: Federation) -> None:
        """Start it.

        Args:
            space: whose network the SuperLink is in; the gateway's folder is made in its folder.
            federation: what to let in; ``listen`` is replaced.

        Raises:
            ConfigError: nginx is not installed.
            RunError: it does not start.
        """
        self.space, self.folder, self._program = space, space.path("gateway"), nginx()
        self.folder.mkdir(mode=0o700)
        # Opened here, as a network of its own has no door; nginx takes it over, as when it is
        # replaced by a newer one.
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=511)
        self.port = int(self._listening.getsockname()[1])
        self._write(federation)
        self._process = self._start()

    def reload(self, federation: Federation) -> None:
        """Take up another federation, or another list of the revoked, while it runs."""
        self._write(federation)
        before = self._pids()
        os.kill(self._master(), signal.SIGHUP)
        self._wait(lambda: bool(self._pids()) and not before & self._pids())

    def calls(self) -> list[str]:
        """The lines of its log, a call each: when, who, what, answered how."""
        return (self.folder / "access.log").read_text(encoding="utf-8").splitlines()

    def stop(self) -> None:
        """End it, and the processes that it started."""
        if self._process.poll() is None:
            os.kill(self._master(), signal.SIGTERM)
            self._process.wait()

    def _write(self, federation: Federation) -> None:
        here = replace(federation, listen=f"127.0.0.1:{self.port}")
        # Its files are this user's alone.
        text = "user root;\n" if os.geteuid() == 0 else ""
        text += configuration(here, str(self.folder))
        (self.folder / "nginx.conf").write_text(text, encoding="utf-8")

    def _start(self) -> subprocess.Popen[bytes]:
        number = self._listening.fileno()
        conf, log = str(self.folder / "nginx.conf"), self.folder / "start.log"
        command = [self._program, "-p", str(self.folder), "-e", "stderr", "-c", conf]
        with log.open("wb") as output:
            # nginx overwrites its environment, by which the guard knows whom to end: as a child of
            # a shell that keeps its own it is found.
            process = popen(
                self.space,
                ["sh", "-c", '"$0" "$@" -g "daemon off;"; exit $?', *command],
                output,
                env={"NGINX": f"{number};"},
                keeps=[number],
            )
        self._listening.close()
        self._wait(lambda: process.poll() is not None or bool(self._pids(process)))
        if process.poll() is not None:
            said = log.read_text(encoding="utf-8", errors="replace")
            raise RunError(f"the gateway did not start: {last_line(said)}")
        return process

    def _pids(self, process: subprocess.Popen[bytes] | None = None) -> set[int]:
        """Of its workers."""
        with suppress(psutil.Error):
            for master in psutil.Process((process or self._process).pid).children():
                return {worker.pid for worker in master.children()}
        return set()

    def _master(self) -> int:
        return int((self.folder / "gateway.pid").read_text())

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START
        while not condition():
            if time.monotonic() > deadline:
                raise RunError(f"the gateway did not change within {START:g} s")
            time.sleep(POLL)
