"""Cables that QEMU carries, where the daemon lacks CAP_NET_ADMIN."""

from labs import Lab

from vmessd.supervisor.host_links import HostLinks

REMARK = (
    "2 cables between VMs cannot be seen on the host: without CAP_NET_ADMIN, QEMU carries the frames; to list "
    "them: vmess --all ifstat"
)


async def test_net_says_how_many_cables_it_cannot_list(lab: Lab) -> None:
    for vm, wires in (("leaf0", "spine0:0 oak0:0 oak0:7\n"), ("spine0", "leaf0:0\n"), ("oak0", "leaf0:1\n")):
        lab.make(vm, NICS=wires)
    lab.make("fir0", NICS="not a wire!\n")
    async with lab.supervisor() as supervisor:
        network = supervisor.host.network
        for may_make_taps, said in (
            (True, []),
            (False, [REMARK]),
        ):
            network.may_make_taps = may_make_taps
            shown = await HostLinks(supervisor).shown()
            assert [one.remark for one in shown if one.bridge is None and one.remark] == said
