"""All VMs of a VM root: registry, `list` and `info`, samples for `top`, boot and shutdown, housekeeping."""
