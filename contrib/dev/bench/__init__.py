"""The benchmarks of `contrib/bench`: links, another checkout, and VMs compared with libvirt and raw QEMU.

`app` reads the command line and creates the namespaces. `wiring` measures links, `before` compares them with
another checkout, and `lives` compares the life cycle of VMs with the `peers`.
"""
