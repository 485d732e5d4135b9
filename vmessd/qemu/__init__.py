"""One QEMU process: its command line, start and end, credentials, QMP monitor, and what it uses.

Nothing here knows how VMs are supervised.
"""
