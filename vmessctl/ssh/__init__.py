"""The way to another host by ssh: control masters, the command line for a login shell, and connections."""
