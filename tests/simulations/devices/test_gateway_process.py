"""The gateway's processes: they start, whoever the user is, and they end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from fedpers.federation import Federation
from simulations.backends import network
from simulations.backends.flower import Space, private_space
from simulations.devices.certificates import Authority, make_certificates
from simulations.devices.check_server import check_server
from simulations.devices.gateway import BRINGS, Gateway, has_nginx

needs_nginx = pytest.mark.skipif(not has_nginx(), reason=f"nginx is not installed: {BRINGS}")


@needs_nginx
def test_it_ends_with_its_space(tmp_path: Path) -> None:
    federation = _federation(tmp_path)
    with private_space("") as space:
        started = Gateway(space, federation)
        pids = [*psutil.Process(started._process.pid).children(recursive=True)]
        assert len(pids) >= 2
    assert psutil.wait_procs(pids, timeout=10)[1] == []


@needs_nginx
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may be somebody else")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="takes a python for all users")
def test_an_ordinary_user_may_have_one_in_a_network_of_his_own() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fedpers-"))
    (folder / "cwd").mkdir()
    federation = _federation(folder)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    child = os.fork()
    if child == 0:
        code, holder = 99, None
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            sys.executable = "/usr/bin/python3"
            holder, within = network.hold({"PATH": os.environ["PATH"]}, "/")
            space = Space(folder, {"PATH": os.environ["PATH"]}, [], within)
            started = Gateway(space, federation)
            address = f"127.0.0.1:{started.port}"
            found = list(check_server(address, Path(federation.superlink_authority), ports=()))
            started.stop()
            code = len(found)
        except network.NoNetwork:
            code = 98
        finally:
            if holder is not None:
                holder.kill()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    shutil.rmtree(folder)
    if code == 98:
        pytest.skip("users have no network namespaces here")
    assert code == 0


@needs_nginx
def test_it_ends_when_its_launcher_is_killed(tmp_path: Path) -> None:
    driver = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import psutil
from test_gateway_process import Gateway, _federation, private_space
with private_space("") as space:
    started = Gateway(space, _federation(Path({str(tmp_path)!r})))
    print(*[one.pid for one in psutil.Process().children(recursive=True)], flush=True)
    time.sleep(600)
"""
    tools = Path(__file__).parents[2] / "tools"
    env = {**os.environ, "PYTHONPATH": f"{tools}:{os.environ.get('PYTHONPATH', '')}"}
    launcher = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, env=env)
    assert launcher.stdout is not None
    started = [psutil.Process(int(pid)) for pid in launcher.stdout.readline().split()]
    assert any(one.name() == "nginx" for one in started)
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs(started, timeout=15)[1] == []


def _federation(folder: Path) -> Federation:
    certificates, authority = make_certificates(folder), Authority()
    return Federation(
        certificate=str(certificates.server),
        certificate_key=str(certificates.server_key),
        authority=str(authority.write(folder / "devices-ca.crt")),
        revoked=str(authority.revoke([], folder / "revoked.pem")),
        superlink_authority=str(certificates.ca),
    )
