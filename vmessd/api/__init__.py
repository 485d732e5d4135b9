"""The control socket: the Varlink interface by groups of methods, connections, what a client may ask for.

A method goes into its group (`inspection`, `life`, `guest`, `looking`, `watching`, `wires`), and its row into
:mod:`vmessd.core.contract`.
"""
