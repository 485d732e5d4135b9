"""All VMs of a VM root: the registry, `list` and `info`, samples for `top`, boot and shutdown, housekeeping."""
