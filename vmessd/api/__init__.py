"""The control socket: who may connect, the Varlink methods, the budget of each user, the audit log.

A method belongs in its group: `inspection` (queries), `life` (files, start and stop), `disks` (images),
`snapshots`, `cloning` (copies of VMs), `guest` (actions on a running guest), `looking` (passed descriptors),
`capturing` (frames), `transferring` (export and import), `moving` (to and from other hosts), `watching`
(streams), `wires` (networks) or `provisioning` (cloud-init, startup). Its row is in
:mod:`vmessd.core.contract`. The records that it takes and returns are in :mod:`vmessd.core.models`; those
that carry descriptors are in its group.
"""
