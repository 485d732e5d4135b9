"""What the rest agrees on: names, settings, states, errors, and what crosses the control socket. Pure.

Nothing here touches a file, a socket or a clock, and nothing here imports another package of vmessd. The
client imports this package and no other.
"""
