"""The control socket: the Varlink interface, connections, what a client may ask for and how much of it."""
