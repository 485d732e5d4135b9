"""The benchmarks of `contrib/bench`: links, another checkout, VMs beside libvirt and raw QEMU, and images.

`app` reads the command line and creates the namespaces. `wiring` measures links, `before` compares them with
another checkout, `lives` compares the life cycle of VMs with the `peers`, and `images` compares copies of disks
with `qemu-img` and `cp`.
"""
