"""What the rest agrees on: names, settings, states, errors, and what crosses the control socket. Pure.

Nothing here touches a file, a socket or a clock, and nothing here imports another package of vmessd. The
client imports this package and no other.

A record or an enumeration that crosses the socket goes into `models`, by subject; the words of an enumeration
into `words`, which the client reads; a method's effect, and the state and the locks it needs, into `contract`.
"""
