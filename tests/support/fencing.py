"""The power switch of machines in containers: what a fence agent in one of them asks to turn another off.

`fencing.py SOCKET NODE=CGROUP ...` listens on a socket in a directory that all machines share. It answers the
line `off NODE` when no process of the control group is left, and `status NODE` by `on` or `off`. Each machine
that it turned off is a line on its standard output.
"""

import os
import select
import socket
import sys
from pathlib import Path

NAME = "fence_lab"
AGENT = """\
#!/usr/bin/python3 -IS
import socket, sys
METADATA = '''<?xml version="1.0"?>
<resource-agent name="fence_lab" shortdesc="The power switch of a test">
<longdesc>It ends all processes of a container.</longdesc>
<parameters>
<parameter name="action" required="1">
<content type="string" default="off"/><shortdesc lang="en">What to do</shortdesc>
</parameter>
<parameter name="port" required="0">
<content type="string"/><shortdesc lang="en">The node</shortdesc>
</parameter>
</parameters>
<actions>
<action name="off"/><action name="monitor"/><action name="status"/><action name="metadata"/>
</actions>
</resource-agent>'''
given = dict(line.strip().partition("=")[::2] for line in ([] if sys.argv[1:] else sys.stdin))
action = given.get("action", sys.argv[-1])
if action == "metadata":
    print(METADATA)
elif action in ("off", "status"):
    with socket.socket(socket.AF_UNIX) as switch:
        switch.connect("SWITCH")
        switch.sendall(f"{action} {given['port']}\\n".encode())
        answer = switch.makefile().readline().strip()
    sys.exit({"off": 2 if action == "status" else 0, "on": 0}.get(answer, 1))
"""
"""A fence agent as Pacemaker and pcs call it: options on standard input, or `-o ACTION`; SWITCH is a socket."""


def turned_off(cgroup: Path) -> bool:
    """Tell whether nothing runs in a control group, or it is gone."""
    try:
        return "populated 0" in (cgroup / "cgroup.events").read_text()
    except FileNotFoundError:
        return True


def turn_off(cgroup: Path) -> None:
    """Kill all processes of a control group at once and wait until they are gone (Linux, cgroup-v2.rst)."""
    try:
        (cgroup / "cgroup.kill").write_text("1")
        with (cgroup / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "populated 1" in os.pread(events.fileno(), 4096, 0).decode():
                poll.poll(100)
    except FileNotFoundError:  # it is off
        return


def serve(path: str, cgroups: dict[str, Path]) -> None:
    """Answer one caller after the other, for ever."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            with listener.accept()[0] as caller:
                action, _, node = caller.makefile().readline().strip().partition(" ")
                if node not in cgroups:
                    continue
                if action == "off":
                    turn_off(cgroups[node])
                    print(node, flush=True)
                caller.sendall(b"off\n" if turned_off(cgroups[node]) else b"on\n")


if __name__ == "__main__":
    serve(sys.argv[1], {name: Path(place) for name, _, place in (word.partition("=") for word in sys.argv[2:])})
