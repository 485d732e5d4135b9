"""One VM: its task; start, stop, restart and adoption of its QEMU; QMP events; the feed of `watch`.

:mod:`vmessd.vm.machine` carries out the actions of the tables in :mod:`vmessd.core.lifecycle`. Each VM has one
task and one inbox.

A QMP event arrives in :mod:`vmessd.vm.machine_base`. :mod:`vmessd.vm.qemu_run` reacts, or translates it for the
tables. :mod:`vmessd.vm.events` only publishes it.
"""
