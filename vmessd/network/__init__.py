"""The network of the host: links over rtnetlink, TAPs, bridges, neighbours, and free ports for VNC displays.

:mod:`vmessd.network.policy` decides which links vmess may touch. Only :mod:`vmessd.network.rtnetlink` and
:mod:`vmessd.network.taps` talk to the kernel. `links` contains the interfaces of VMs. `bridges`
contains the net verbs, and creates the kind of link that a name says (:func:`vmessd.core.wires.kind_by_name`).
"""
