"""The network of the host: links over rtnetlink, TAPs, bridges, neighbours, and free ports for VNC displays.

:mod:`vmessd.network.policy` decides which links vmess may touch. Only :mod:`vmessd.network.rtnetlink` and
:mod:`vmessd.network.taps` speak to the kernel. `links` has the interfaces of VMs, `bridges` what the net
verbs do.
"""
