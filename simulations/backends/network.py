"""A network of its own for what a launch starts: nobody outside of it reaches its ports, other
users of the machine included.

A network namespace (Linux's ``unshare``), which root may make, and users where the system lets
them have namespaces. Run as a script this file is the process that holds one: ``network.py
[ADDRESS]...``, until its standard input is closed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

SIOCSIFFLAGS, SIOCSIFADDR = 0x8914, 0x8916  # of <linux/sockios.h>
UP_AND_RUNNING = 0x41
READY = b"ready\n"


class NoNetwork(Exception):
    """The system gives no network namespace; says why."""


def hold(env: dict[str, str], cwd: str) -> tuple[subprocess.Popen[bytes], list[str]]:
    """Start the process that holds a network with nothing in it but loopback.

    Returns:
        The process, which ends when its standard input is closed; and the words that, put before
        a command, have it run in that network.

    Raises:
        NoNetwork: there is none to be had.
    """
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        raise NoNetwork("util-linux's unshare and nsenter are not here")
    root = os.geteuid() == 0
    user = [] if root else ["--map-current-user", "--keep-caps"]
    holder = subprocess.Popen(
        ["unshare", "--net", *user, sys.executable, "-I", "-S", __file__, *_own_addresses()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,  # a Ctrl-C is for the launcher
    )
    assert holder.stdout is not None
    said = holder.stdout.readline()
    if said != READY:
        holder.kill()
        holder.wait()
        raise NoNetwork(_line(said) or "unshare ended at once")
    own = [] if root else ["--user", "--preserve-credentials"]
    within = ["nsenter", f"--target={holder.pid}", "--net", *own, "--"]
    # Some systems give the namespace and let nobody in.
    entered = subprocess.run([*within, "true"], env=env, capture_output=True)
    if entered.returncode != 0:
        holder.kill()
        holder.wait()
        raise NoNetwork(_line(entered.stderr) or "nsenter failed")
    return holder, within


def _line(said: bytes) -> str:
    return " ".join(said.decode(errors="replace").split())


def _own_addresses() -> list[str]:
    """The address of this machine's own name, at which Ray's processes look for each other."""
    try:
        found = socket.gethostbyname(socket.gethostname())
    except OSError:
        return []
    return [] if found.startswith("127.") else [found]


def main() -> None:
    """Bring loopback up, with ``ADDRESS``es on it too, and hold on."""
    try:
        _bring_up(sys.argv[1:])
    except OSError as error:
        sys.exit(f"loopback cannot be brought up: {error.strerror}")
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    sys.stdin.buffer.read()


def _bring_up(addresses: list[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", UP_AND_RUNNING))
        for number, address in enumerate(addresses, 1):
            name, packed = f"lo:{number}".encode(), socket.inet_aton(address)
            asked = struct.pack("16sHH4s8x", name, socket.AF_INET, 0, packed)
            fcntl.ioctl(control, SIOCSIFADDR, asked)


if __name__ == "__main__":
    main()
