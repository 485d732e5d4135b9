"""All VMs of a VM root: which there are, how they are, and what is done to many of them at once."""
