"""One QEMU process: its command line, its start and end, its credentials, its QMP monitor, what it uses.

Nothing here knows how VMs are looked after; it knows what a QEMU is.
"""
