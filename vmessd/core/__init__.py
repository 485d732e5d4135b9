"""Names, settings, states, errors, the ladder of a stop, and the records of the control socket.

Nothing here does I/O, except `systemd` and `stdio`, which the client shares, and `records`, which reads the
clock. No module here imports another package of vmessd. The client imports this package and no other.
"""
