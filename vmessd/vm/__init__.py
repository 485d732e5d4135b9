"""One VM: its task; start, stop, restart and adoption of its QEMU; QMP events; the feed of `watch`.

:mod:`vmessd.vm.machine` carries out the actions of the tables in :mod:`vmessd.core.lifecycle`. Each VM has one
task and one inbox.
"""
