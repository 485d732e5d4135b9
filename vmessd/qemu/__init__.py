"""One QEMU process: command line, start and end, credentials, QMP monitor, resource usage.

The other programs that vmessd starts are here, too, such as swtpm, nft and dnsmasq.

Nothing here knows how VMs are supervised.
"""
