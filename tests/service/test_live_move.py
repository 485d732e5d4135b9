"""A guest moves between two installed services, whose QEMUs have no rights and a sandbox."""

from pathlib import Path
from typing import NamedTuple

import pytest
from booted import ROOT, Container, Stage, machine
from daemons import wait_for
from rides import ride_until, riding

pytestmark = pytest.mark.slow


class Service(NamedTuple):
    """The service of a machine, as its clients know it."""

    socket: Path


def service(host: Container) -> Service:
    return Service(host.path("/run/vmess/control.sock"))


def rights(host: Container, pid: int) -> tuple[str, str, str]:
    """Return the user, the capabilities and the mode of seccomp of a process."""
    lines = host.done("cat", f"/proc/{pid}/status").splitlines()
    said = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    user = host.done("id", "--user", "--name", said["Uid"][0]).strip()
    return user, said["CapEff"][0].strip("0"), said["Seccomp"][0]


def files(host: Container) -> str:
    command = ("find", ROOT / "alpha0", "-name", "*.img", "-printf", "%f %u %g %m %s")
    return host.done(*command)


def sockets(host: Container) -> set[str]:
    return {path.name for path in host.path(ROOT / "alpha0").iterdir() if path.is_socket()}


@pytest.mark.long
def test_c189_a_guest_moves_between_two_services(host: Container, stage: Stage, installed: list[Path]) -> None:
    with machine(stage, installed) as other:
        other.boot()
        host.make("alpha0")
        before, image = files(host), host.path(ROOT / "alpha0/alpha0-hda.img").read_bytes()
        with riding(service(host), service(other), "alpha0") as ride:
            ride_until(ride, service(host), "forgotten")
            progress = ride.moving.last()["progress"]
        assert progress["stood_still"] > 0
        assert host.qemus() == {}
        assert not host.path(ROOT / "alpha0").exists()
        [pid] = other.qemus().values()
        assert rights(other, pid) == ("vmess-qemu", "", "2")
        assert files(other) == before
        assert other.path(ROOT / "alpha0/alpha0-hda.img").read_bytes() == image
        assert sockets(other) == {"qmp.sock", "serial.sock"}
        assert other.status("alpha0")["state"] == "running"
        assert "R" not in other.serial("alpha0"), "it did not start again"
        other.done("vmess", "alpha", "stop")
        wait_for(lambda: other.qemus() == {}, what="a guest that has heard its power button")
        assert not other.journal("vmessd.service").count("Traceback")
        assert not host.journal("vmessd.service").count("Traceback")
