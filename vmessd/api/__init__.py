"""The control socket: who may connect, the Varlink methods, the budget of each user, the audit log.

A method goes into its group (`inspection`, `life`, `guest`, `looking`, `watching`, `wires`), and its row into
:mod:`vmessd.core.contract`.
"""
