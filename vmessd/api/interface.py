"""The Varlink interface `org.emptystack.vmess`: all groups of methods in one. Typed methods, no logic."""

from asyncvarlink import VarlinkInterface

from vmessd.api import wire_errors
from vmessd.api.guest import Guest
from vmessd.api.inspection import Inspection
from vmessd.api.life import Life
from vmessd.api.looking import Looking
from vmessd.api.watching import Watching
from vmessd.api.wires import Wires
from vmessd.core.errors import INTERFACE


class VmessInterface(Inspection, Life, Guest, Looking, Watching, Wires, VarlinkInterface, name=INTERFACE):
    """Small KVM machines in plain directories.

    A VM is named as on the command line: letters a-z and one digit, `newvm` meaning `newvm0`.
    Durations are in seconds, sizes in bytes.
    """

    errors = tuple(wire_errors.REPLIES.values())
