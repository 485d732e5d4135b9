"""The process that daemons, clients or checks are forked from: it has imported one of the programs.

It is asked by :mod:`forkserver`. It imports little before the program, since a client has all of it.
"""

import gc
import json
import os
import select
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_SLAVE, MS_REC, MNT_DETACH = 1 << 19, 1 << 14, 2
MESSAGE = 1 << 17
"""Bytes of the longest message: arguments and an environment."""


def serve(channel: socket.socket) -> Mapping[str, Any] | None:
    """Fork until nobody is there to ask for it; return the request in what was forked, and else None."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    children: dict[int, int] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == channel.fileno():
                data, descriptors, _, _ = socket.recv_fds(channel, MESSAGE, 3)
                if not data:
                    return None
                pid = os.fork()
                if not pid:
                    request: dict[str, Any] = json.loads(data)
                    become(request, descriptors)
                    return request
                for received in descriptors:
                    os.close(received)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid
                poll.register(pidfd, select.POLLIN)
                socket.send_fds(channel, [json.dumps({"pid": pid}).encode()], [pidfd])
            else:
                pid = children.pop(descriptor)
                poll.unregister(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                try:
                    channel.send(json.dumps({"pid": pid, "status": status}).encode())
                except BrokenPipeError:
                    return None


def become(request: Mapping[str, Any], streams: list[int]) -> None:
    """Make this process what the program is before its first line: descriptors, environment, arguments."""
    for number, source in enumerate(streams):
        os.dup2(source, number)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    if request["namespace"] is not None:
        enter(request["namespace"])
    sys.argv[:] = request["arguments"]


def enter(namespace: str) -> None:
    """Enter a network namespace as `ip netns exec` does, with a /sys that shows it (ip-netns(8))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    failed = (
        libc.setns(descriptor, CLONE_NEWNET)
        or libc.unshare(CLONE_NEWNS)
        or libc.mount(b"", b"/", b"none", MS_SLAVE | MS_REC, None)
        or libc.umount2(b"/sys", MNT_DETACH)
        or libc.mount(namespace.encode(), b"/sys", b"sysfs", 0, None)
    )
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)


def vmessd() -> Callable[[], object]:
    """Import the daemon, which checks its replies here, and return its main function."""
    from vmessd import __main__
    from vmessd.api.connection import Connection

    send = Connection._send

    async def checked(self: Connection, signature: Any, result: Any) -> bool:
        """Send a reply if its values have the types that are declared; the daemon leaves this to mypy."""
        if not signature.return_type.contains_fds:
            signature.return_type.tojson(dict(result.parameters))
        return await send(self, signature, result)

    Connection._send = checked  # type: ignore[method-assign]
    return lambda: sys.exit(__main__.main())


def vmessd_wired() -> Callable[[], object]:
    """Import the daemon, and pyroute2 as the first change of a link does, and return its main function."""
    from vmessd.network import rtnetlink

    rtnetlink._pyroute2()
    return vmessd()


def vmessctl() -> Callable[[], object]:
    """Import the client with the modules of its verbs, and return its main function."""
    from vmessctl import __main__
    from vmessctl.cli.verbs import COMMANDS

    for module in {command.handler.partition(".")[0] for command in COMMANDS}:
        if module != "top":  # it imports much, and reads its terminal
            __import__(f"vmessctl.commands.{module}")
    return __main__.program


def rtnetlink_checks() -> Callable[[], object]:
    """Import the tests of rtnetlink, each of which is then called by a program of its own."""
    sys.path.insert(0, str(CHECKOUT / "tests/network"))
    __import__("test_rtnetlink")
    return lambda: None


PROGRAMS = {
    "vmessd": vmessd,
    "vmessd, wired": vmessd_wired,
    "vmessctl": vmessctl,
    "rtnetlink checks": rtnetlink_checks,
}


def run() -> None:
    """Import the program that is named, fork what is asked for, and there run it."""
    sys.path.insert(0, str(CHECKOUT))
    main = PROGRAMS[sys.argv[1]]()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as channel:
        request = serve(channel)
        if request is None:
            return
        channel.detach()  # closed already
    if request["code"] is None:
        main()
    exec(request["code"], {"__name__": "__main__"})  # noqa: S102 -- as python -c


if __name__ == "__main__":
    run()
