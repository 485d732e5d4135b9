"""A vmessd for the bench, and calls to it."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from bench.measuring import seconds

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
PROGRAMS = CHECKOUT / ".venv" / "bin"


class Daemon:
    """A private vmessd and a connection to it."""

    def __init__(self, scratch: pathlib.Path, programs: pathlib.Path = PROGRAMS, *options: str) -> None:
        self.programs = programs
        self.root = scratch / "vms"
        self.socket = scratch / "control.sock"
        self.environment = {**os.environ, "VMESS_VMDIR": str(self.root), "VMESS_SOCKET": str(self.socket)}
        self.log = (scratch / "vmessd.log").open("wb")
        self.process = subprocess.Popen([programs / "vmessd", *options], env=self.environment, stderr=self.log)
        while self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.link = self.connect()
                return
            time.sleep(0.02)
        raise SystemExit(f"bench: vmessd ended: {(scratch / 'vmessd.log').read_text()}")

    def connect(self) -> socket.socket:
        """Return another connection."""
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self.socket))
        return link

    def call(self, method: str, link: socket.socket | None = None, **parameters: object) -> dict[str, Any]:
        """Call a method and return the parameters of its reply."""
        link = link or self.link
        name = method if "." in method else f"org.emptystack.vmess.{method}"
        link.sendall(json.dumps({"method": name, "parameters": parameters}).encode() + b"\0")
        data = b""
        while not data.endswith(b"\0"):
            data += link.recv(1 << 20)
        reply = json.loads(data[:-1])
        if "error" in reply:
            raise SystemExit(f"bench: {method}: {reply}")
        answer: dict[str, Any] = reply["parameters"]
        return answer

    def look(self) -> None:
        """Get the info of all VMs, one reply for each."""
        call = {"method": "org.emptystack.vmess.Look", "parameters": {"vms": [], "aspect": "info"}}
        self.link.sendall(json.dumps({**call, "more": True}).encode() + b"\0")
        with self.link.makefile("rb") as replies:
            rest = b""
            while True:
                *whole, rest = (rest + replies.read1(1 << 20)).split(b"\0")
                if whole and not json.loads(whole[-1]).get("continues"):
                    return

    def memory(self) -> float:
        """Resident memory in MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @contextlib.contextmanager
    def stalls(self) -> Iterator[list[float]]:
        """Collect the round trip times of a busy client, in seconds; the longest shows a stall."""
        trips: list[float] = []
        over = threading.Event()

        def ask() -> None:
            with self.connect() as link:
                while not over.is_set():
                    trips.append(seconds(lambda: self.call("org.varlink.service.GetInfo", link)))
                    time.sleep(0.001)

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            yield trips
        finally:
            over.set()
            asker.join()

    def close(self) -> None:
        """End the daemon."""
        self.link.close()
        self.process.terminate()
        self.process.wait()


def installed(scratch: pathlib.Path) -> pathlib.Path:
    """Create a `vmessctl` like that of contrib/install, in which Python does not search for packages."""
    launcher = scratch / "vmessctl"
    launcher.write_text(
        f"#!/usr/bin/python3 -IS\nimport sys\nsys.path.append({str(CHECKOUT)!r})\n"
        "from vmessctl.__main__ import program\nprogram()\n"
    )
    launcher.chmod(0o755)
    return launcher
