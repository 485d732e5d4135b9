"""One VM: its task, and the start, stop, restart and adoption of its QEMU; QMP events, and the feed of `watch`.

:mod:`vmessd.vm.machine` carries out what the tables of :mod:`vmessd.core.lifecycle` say. Each VM has one task
and one mailbox.
"""
