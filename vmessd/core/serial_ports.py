"""The serial ports of a VM: their numbers, counted from 1, and the names that follow from them. Pure."""

from vmessd.core.errors import InvalidValue, quoted

FIRST = 1
PORTS = (FIRST, 2, 3)
SERIAL = "SERIAL"
"""The setting that says how many a VM has."""


def checked(port: int | None) -> int:
    """Return the number of a port, the first one for None; raises InvalidValue."""
    if port is None:
        return FIRST
    if port not in PORTS:
        raise InvalidValue(f"serial port {quoted(port)} is not one of {', '.join(map(str, PORTS))}")
    return port


def socket(port: int) -> str:
    """Return the name of the socket of its console: `serial.sock`, `serial2.sock`."""
    return f"serial{_number(port)}.sock"


def log(port: int) -> str:
    """Return the name of its log: `serial.log`, `serial2.log`."""
    return f"serial{_number(port)}.log"


def chardev(port: int) -> str:
    """Return the id of its backend in QEMU: `serial0` for the first one."""
    return f"serial{port - FIRST}"


def _number(port: int) -> str:
    return "" if port == FIRST else str(port)
