"""What `contrib/bench` measures: links, another checkout of this one, and life beside libvirt and QEMU alone.

`app` reads the command line and makes the namespaces. `wiring` measures links, `before` measures them beside
another checkout, and `lives` measures the life of VMs beside the `peers`.
"""
