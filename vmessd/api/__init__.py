"""The control socket: who may connect, the Varlink methods, the budget of each user, the audit log.

A method belongs in its group (`inspection`, `life`, `guest`, `looking`, `watching`, `wires`), and its row in
:mod:`vmessd.core.contract`.
"""
