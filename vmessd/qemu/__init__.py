"""One QEMU process: command line, start and end, credentials, QMP monitor, resource usage.

Nothing here knows how VMs are supervised.
"""
