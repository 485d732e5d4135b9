"""Names, settings, states, errors, the ladder of a stop, and what crosses the control socket.

A record that crosses the socket goes into `models`, by subject; the words of an enumeration into `words`, which
the client reads; a method's effect, and the state and the locks that it needs, into `contract`.

Nothing here does I/O, except `systemd` and `stdio`, which the client shares, and `records`, which reads the
clock. No module here imports another package of vmessd. The client imports this package and no other.
"""
