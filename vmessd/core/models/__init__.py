"""What crosses the control socket: typed records and enumerations, by subject. Pure.

Field names are wire names and stay; what is added may be absent, for the sake of clients and daemons of other
versions. A word with a fixed set of values is an enumeration; where its type has always been `string` on the
wire, that enumeration is one of strings. Their values stand in :mod:`vmessd.core.words`.
"""
