"""Other hosts for the tests: each a real sshd on the loopback, with keys, a login shell and a home of its own.

Each sshd runs in a mount namespace in which the user database is one of the test's, so that no file of the host
is touched. `ssh` in `PATH` is Debian's, with a configuration in place of the person's.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from daemons import TESTS, UNIT, wait_for
from sockets import free_port

SSHD = "/usr/sbin/sshd"
SSH = "/usr/bin/ssh"
PRIVILEGE_SEPARATION = "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin"
"""A user that sshd(8) needs."""
START = """\
mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd || exit 1
mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/shadow" /etc/shadow || exit 1
exec "$2" -D -e -f "$1/sshd_config"
"""


def need_sshd() -> None:
    """Skip a test where there is no sshd, or where it cannot have a mount namespace."""
    if os.geteuid() != 0:
        pytest.skip("an sshd with a user database of its own needs root")
    if not os.path.exists(SSHD) or not os.path.exists(SSH):
        pytest.skip("there is no OpenSSH: install openssh-server and openssh-client")


def put_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class SSHHost:
    """A host with an sshd; `shell` is a login shell, `path` the PATH of its sessions."""

    def __init__(self, lab: "Lab", name: str, shell: str = "/bin/sh", **variables: str) -> None:
        self.name = name
        self.port = free_port()
        self.directory = lab.directory / name
        self.home = self.directory / "home"
        self.home.mkdir(parents=True)
        self.log = self.directory / "sshd.log"
        self._variables = {"PATH": f"{lab.bin}:/usr/bin:/bin", **variables}
        self._key = lab.key
        self.make_key()
        (self.directory / "passwd").write_text(f"root:x:0:0:root:{self.home}:{shell}\n{PRIVILEGE_SEPARATION}\n")
        (self.directory / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        (self.directory / "sshd_config").write_text(self._config())
        self.process = self._started()

    def make_key(self) -> None:
        """Give the host a new key."""
        for file in self.directory.glob("host_key*"):
            file.unlink()
        make_key(self.directory / "host_key")

    def _config(self) -> str:
        variables = " ".join(f'"{name}={value}"' for name, value in self._variables.items())
        return f"""\
ListenAddress 127.0.0.1:{self.port}
HostKey {self.directory}/host_key
AuthorizedKeysFile {self._key}.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PrintMotd no
SetEnv {variables}
"""

    def _started(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["unshare", "--mount", "--", "/bin/sh", "-c", START, "sh", self.directory, SSHD],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: b"Server listening" in self.log.read_bytes(), what=f"sshd of {self.name}")
        return process

    def restart(self) -> None:
        """End the sshd with all its sessions, and start it again."""
        self.close()
        self.log.unlink()
        self.process = self._started()

    def connections(self) -> int:
        """Return how many logins there were."""
        return self.log.read_text().count("Accepted publickey")

    def config(self) -> str:
        """Return what ssh_config(5) says of it."""
        return f"Host {self.name}\n  HostName 127.0.0.1\n  Port {self.port}\n"

    def close(self) -> None:
        """End the sshd, and its sessions with it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10 * UNIT)


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=20 * UNIT)


PROGRAM = f"""\
#!{sys.executable} -IS
import sys
sys.path.extend({[str(TESTS.parent), *(path for path in sys.path if path.endswith("site-packages"))]!r})
from vmessctl.__main__ import program
program()
"""
"""The client as contrib/install installs it."""
PEER = """\
#!/bin/sh
case " $* " in
*" -G "*) echo "connecttimeout 1"; exit 0 ;;
*" -N "*) exit 0 ;;
esac
for line; do :; done
PATH={over_there}:/usr/bin:/bin
"""
"""In place of ssh: every host is there, and the command line of a session is in `line`."""


class Lab:
    """A person with an ssh, and other hosts to go to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # A short path, since ssh puts its control sockets there (unix(7)).
        self.runtime = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.ssh_config = directory / "ssh_config"
        self.hosts_file = directory / "config/vmess/hosts"
        self.key = directory / "key"
        make_key(self.key)
        put_script(self.bin / "vmessctl", PROGRAM)
        self.over_there = directory / "over_there"
        self.over_there.mkdir()
        put_script(self.bin / "ssh", f'#!/bin/sh\nexec {SSH} -F {self.ssh_config} "$@"\n')
        self.hosts: dict[str, SSHHost] = {}
        self._commands: list[subprocess.Popen[str]] = []
        self.more = ""
        """More lines of ssh_config(5), which come first."""
        self.configure()

    def add(self, name: str, **options: str) -> SSHHost:
        """Add a host."""
        host = self.hosts[name] = SSHHost(self, name, **options)
        self.configure()
        return host

    def pretend(self, session: str, program: str = "exit 0") -> None:
        """Put a script in place of ssh, and one in place of `vmessctl` over there."""
        put_script(self.bin / "ssh", PEER.format(over_there=self.over_there) + session)
        put_script(self.over_there / "vmessctl", f"#!/bin/sh\n{program}\n")

    def configure(self, more: str | None = None) -> None:
        """Write the person's ssh_config(5)."""
        self.more = self.more if more is None else more
        common = f"Host *\n  IdentityFile {self.key}\n  UserKnownHostsFile {self.directory}/known_hosts\n"
        common += "  StrictHostKeyChecking accept-new\n  GlobalKnownHostsFile /dev/null\n  IdentityAgent none\n"
        hosts = "".join(host.config() for host in self.hosts.values())
        self.ssh_config.write_text(f"{self.more}{hosts}{common}")

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("VMESS_")},
            "PATH": path,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            **more,
        }

    def command(self, *words: str) -> list[str]:
        return [str(self.bin / "vmessctl"), *words]

    def run(
        self, *words: str, env: dict[str, str] | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run the client to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment(**(env or {})),
            text=True,
            check=False,
            **{"capture_output": True, "stdin": subprocess.DEVNULL, "timeout": 60 * UNIT, **options},
        )

    def start(self, *words: str, env: dict[str, str] | None = None, **popen: Any) -> "subprocess.Popen[str]":
        """Start the client."""
        process = subprocess.Popen(
            self.command(*words),
            env=self.environment(**(env or {})),
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},
        )
        self._commands.append(process)
        return process

    def end_commands(self) -> None:
        """End the clients that were started and still run, as after a test that failed."""
        for process in self._commands:
            process.kill()
            with process:
                pass
        self._commands.clear()

    def masters(self) -> list[int]:
        """Return the PIDs of the control masters."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                line = Path("/proc", str(int(entry)), "cmdline").read_bytes()
                if f"{self.runtime}/vmess/ssh-".encode() in line:
                    found.append(int(entry))
        return found

    def end_masters(self) -> None:
        """Kill the control masters."""
        for pid in self.masters():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.masters(), what="the end of all masters")

    def close(self) -> None:
        """End all commands, masters and hosts."""
        self.end_commands()
        self.end_masters()
        for host in self.hosts.values():
            host.close()
        shutil.rmtree(self.runtime)
