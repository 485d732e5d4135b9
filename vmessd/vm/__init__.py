"""One VM: the task that owns it, each life of its QEMU, adoption after a restart of the daemon, its events.

:mod:`vmessd.vm.machine` carries out what the tables of :mod:`vmessd.core.lifecycle` say; one task and one
mailbox for each VM.
"""
