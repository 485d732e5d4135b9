"""The records and enumerations that cross the control socket, by subject. Pure.

Field names are wire names and do not change. An added field may be absent, for clients and daemons of other
versions. A word with a fixed set of values is an enumeration; if its wire type has always been `string`, it is
a `StrEnum`. The values are in :mod:`vmessd.core.words`.
"""
