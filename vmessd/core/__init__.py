"""Names, settings, states, errors, the ladder of a stop, and everything that crosses the control socket.

A per-VM setting is a row in `settings`. A naming convention is in `names`, or for links of the host in `wires`.

A record that crosses the socket belongs in `models`, by subject; the words of an enumeration in `words`, which
the client reads; the effect of a method, and the state and locks it needs, in `contract`.

Nothing here does I/O, except `systemd`, `stdio`, `places` and `pid_file`, which the client uses too, and
`records`, which reads the clock and the boot id. No module here imports another package of vmessd. The client
imports no other package of vmessd.
"""
