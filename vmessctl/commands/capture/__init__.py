"""The verb capture: frames of interfaces, from the memory into which QEMU writes them to a file or a pipe."""
