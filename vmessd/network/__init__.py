"""The host's network: links over rtnetlink, TAPs, bridges, neighbours, and free ports for VNC displays.

Which links vmess may touch is decided in :mod:`vmessd.network.policy`; only :mod:`vmessd.network.rtnetlink`
and :mod:`vmessd.network.taps` speak to the kernel.
"""
