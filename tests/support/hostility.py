"""A member of the socket's group who wants nobody else to be served, in many ways; another asks how a VM is.

Run as a program of its own, as another user, with nothing but the standard library:
`hostility.py WAY DIRECTORY SECONDS VM...`. The directory is a descriptor, for a path that others may not walk.
"""

import contextlib
import json
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

INTERFACE = "org.emptystack.vmess"
THREADS = 6
LEAST = 6
"""How often a status is asked for at least."""

Work = Callable[[], None]


def encode(method: str, parameters: dict[str, object], *, more: bool = False) -> bytes:
    call: dict[str, object] = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
    return json.dumps(call | ({"more": True} if more else {})).encode() + b"\0"


class Enemy:
    """What all ways have in common."""

    def __init__(self, directory: str, vms: list[str]) -> None:
        self.path = f"/proc/self/fd/{directory}/control.sock"
        self.vms = vms
        self.vm = vms[0]

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Connect, and wait for room in the daemon's queue as a client does."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 30, 0))
            sock.connect(self.path)
            sock.settimeout(30)
            yield sock

    def ask(self, sock: socket.socket, call: bytes, replies: int = 1) -> None:
        """Make a call and read so many replies."""
        sock.sendall(call)
        while replies:
            data = sock.recv(1 << 20)
            if not data:
                raise ConnectionResetError
            replies = max(0, replies - data.count(b"\0"))

    def again(self, *calls: bytes) -> Work:
        """Make calls one after the other on one connection."""

        def work() -> None:
            with self.connected() as sock:
                while True:
                    for call in calls:
                        self.ask(sock, call)

        return work

    def once(self, call: bytes, replies: int = 0) -> Work:
        """Connect, make a call, read nothing or some replies, and leave."""

        def work() -> None:
            with self.connected() as sock:
                self.ask(sock, call, replies)

        return work

    def unread(self, call: bytes, number: int) -> Work:
        """Make many calls and read no reply."""

        def work() -> None:
            with contextlib.ExitStack() as crowd:
                for _ in range(number):
                    sock = crowd.enter_context(self.connected())
                    sock.settimeout(0.2)
                    with contextlib.suppress(OSError):
                        sock.sendall(call * 240)
                time.sleep(2)

        return work

    def crowd(self, *said: bytes) -> Work:
        """Hold many connections, each of which says the same few things and waits."""

        def work() -> None:
            with contextlib.ExitStack() as crowd:
                socks = [crowd.enter_context(self.connected()) for _ in range(50)]
                for data in said:
                    for sock in socks:
                        with contextlib.suppress(OSError):
                            sock.sendall(data)
                    time.sleep(0.05)
                time.sleep(0.5)

        return work

    def ways(self) -> dict[str, tuple[int, Work]]:
        """Return each way, and how many threads go it."""
        nasty = f"1000:{(b'a' + b'b' + b'a' * 126).hex()}"
        serial = [encode("Serial", {"vm": vm, "since": nasty}, more=True) for vm in self.vms[:40]]
        names = [f"{vm}"[:-1] for vm in self.vms] * (12000 // len(self.vms) + 1)
        return {
            "calls": (12, self.again(encode("Status", {"vm": self.vm}), encode("Info", {"vm": self.vm}))),
            "names": (8, self.once(encode("Watch", {"vms": names[:7000]}, more=True), replies=1)),
            "list": (60, self.again(encode("List", {}))),
            "marks": (len(serial), self.in_turn([self.once(call, replies=2) for call in serial])),
            "unread": (4, self.unread(encode("List", {}), 20)),
            "descriptors": (2, self.unread(encode("Log", {"vm": self.vm, "log": "serial"}), 20)),
            "storm": (8, self.once(b"")),
            "halves": (4, self.crowd(b'{"method":', *[b'"'] * 40)),
            "idle": (4, self.crowd()),
            "abandoned": (
                4,
                self.in_turn(
                    [
                        self.once(encode("Start", {"vm": self.vm}, more=True)),
                        self.once(encode("Stop", {"vm": self.vm, "force": False}, more=True)),
                        self.once(encode("List", {})),
                        self.once(encode("NetShow", {})),
                        self.once(encode("Why", {"vm": self.vm})),
                    ]
                ),
            ),
            "log": (
                4,
                self.again(
                    encode("Unlock", {"vm": "nosuch0"}),
                    encode("Lock", {"vm": self.vms[-1], "remark": "x"}),
                    encode("Unlock", {"vm": self.vms[-1]}),
                    b'{"method":"Explode"}\0{}\0',
                ),
            ),
        }

    def in_turn(self, works: list[Work]) -> Work:
        """Do one after the other."""

        def work() -> None:
            for each in works:
                with contextlib.suppress(OSError):
                    each()

        return work


def until(end: float, work: Work) -> None:
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            work()


def status(enemy: Enemy, seconds: float) -> None:
    """Print how long it took each time to connect and be told how a VM is."""
    taken: list[float] = []
    end = time.monotonic() + seconds
    call = encode("Status", {"vm": enemy.vms[-1]})
    while time.monotonic() < end or len(taken) < LEAST:
        began = time.monotonic()
        try:
            with enemy.connected() as sock:
                enemy.ask(sock, call)
        except OSError as error:
            print(error, file=sys.stderr)
            taken.append(30.0)
        else:
            taken.append(time.monotonic() - began)
        time.sleep(0.02)
    print(json.dumps(taken))


def main(way: str, directory: str, seconds: str, *vms: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    enemy = Enemy(directory, list(vms))
    print("here", flush=True)
    if way == "status":
        status(enemy, float(seconds))
        return
    number, work = enemy.ways()[way]
    end = time.monotonic() + float(seconds)
    threads = [threading.Thread(target=until, args=(end, work), daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, end - time.monotonic()))


if __name__ == "__main__":
    main(*sys.argv[1:])
