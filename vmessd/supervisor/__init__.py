"""All VMs of a VM root: registry, locks, changes, clones, archives; views of them; boot, shutdown, upkeep."""
