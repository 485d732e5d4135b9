"""A stand-in for QEMU that speaks just enough QMP and misbehaves on purpose.

Started in QEMU's place with the same arguments and the same open descriptors (vmessd/qemu/command_line.py);
`-fake MODE[,key=value...]` among the arguments, from a VM's EXARGS file, says how. MODES at the end
lists the modes. Every other argument but `-pidfile` is ignored.
It imports little, and greets 30 ms after it was started. `daemons.FAKE` is the program.
"""

import contextlib
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

QMP_FD = 4
SERIAL_FD = 5
AGENT_FD = 7
MEGABYTE = 1_000_000
DRAIN = 30.0  # how long the end waits for a client to take what was said before


class Mistake(Exception):
    """The `-fake` argument is wrong."""


class Options:
    """The `key=value` pairs of a mode; each is taken by whoever knows it."""

    def __init__(self, text: str) -> None:
        # A message is the rest of the argument, whatever it contains.
        text, found, message = text.partition(",message=")
        self.mode, *pairs = text.split(",")
        self._left: dict[str, str] = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            self._left[key] = value
        if found:
            self._left["message"] = message

    def text(self, key: str, default: str) -> str:
        return self._left.pop(key, default)

    def number(self, key: str, default: float) -> float:
        value = self._left.pop(key, None)
        try:
            return default if value is None else float(value)
        except ValueError:
            raise Mistake(f"{key} {value!r} is no number") from None

    def must_be_used(self) -> None:
        if self._left:
            raise Mistake(f"mode {self.mode} knows no {', '.join(self._left)}")


class Fake:
    """Behaves as QEMU does, as far as vmessd asks; the modes below change one thing each.

    One thread, one loop: `turn` waits for the listening socket, the one client, SIGTERM and the timers.
    """

    def __init__(self, options: Options) -> None:
        self.delay = options.number("delay", 0.05)
        self.accepting = True
        self.listener = socket.socket(fileno=QMP_FD)
        self.client: socket.socket | None = None
        self.clients = 0
        self.received = b""
        self.unsent = bytearray()
        self.hanging_up = False
        self.negotiated = False
        self.status = "prelaunch"
        self.pressed = False
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.deadline: float | None = None
        self.more: dict[socket.socket, Callable[[], None]] = {}
        """What to do if there is something to read from other sockets."""

    # What the modes change.

    def started(self) -> None:
        """The process is up; nobody was accepted yet."""

    def greet(self) -> None:
        self.send_message(greeting())

    def ran(self) -> None:
        """The guest runs for the first time; the reply to `cont` is on its way."""

    def press(self) -> None:
        """The power button was pressed while the guest ran, or before it did."""
        self.later(self.delay, self.power_off)

    def reply(self, command: object, message: dict[str, object]) -> None:
        self.send_message(message)

    def quit_asked(self) -> None:
        self.finish("host-qmp-quit", guest=False)

    def terminated(self) -> None:
        self.finish("host-signal", guest=False)

    # Commands.

    def qmp_capabilities(self) -> object:
        self.negotiated = True
        return {}

    def query_status(self) -> object:
        return {"status": self.status, "singlestep": False, "running": self.status == "running"}

    def query_block(self) -> object:
        return []

    def query_blockstats(self) -> object:
        return []

    def cont(self) -> object:
        before, self.status = self.status, "running"
        if before != "running":
            self.event("RESUME")
            if self.pressed:
                self.press()
        if before == "prelaunch":
            self.later(0, self.ran)
        return {}

    def stop(self) -> object:
        if self.status == "running":
            self.event("STOP")
            self.status = "paused"
        return {}

    def system_powerdown(self) -> object:
        self.event("POWERDOWN")
        self.pressed = True
        if self.status == "running":
            self.press()
        return {}

    def quit(self) -> object:
        self.quit_asked()
        return {}

    def execute(self, request: dict[str, object]) -> None:
        name = request.get("execute", request.get("exec-oob"))
        commands: dict[object, Callable[[], object]] = {
            "qmp_capabilities": self.qmp_capabilities,
            "query-status": self.query_status,
            "query-block": self.query_block,
            "query-blockstats": self.query_blockstats,
            "cont": self.cont,
            "stop": self.stop,
            "system_powerdown": self.system_powerdown,
            "quit": self.quit,
        }
        message: dict[str, object] = {}
        if not self.negotiated and name != "qmp_capabilities":
            message["error"] = error("Expecting capabilities negotiation with 'qmp_capabilities'")
        elif name in commands:
            message["return"] = commands[name]()
        else:
            arguments = request.get("arguments")
            message.update(self.other(name, arguments if isinstance(arguments, dict) else {}))
        if "id" in request:
            message["id"] = request["id"]
        self.reply(name, message)

    def other(self, name: object, arguments: dict[str, object]) -> dict[str, object]:
        """Return the outcome of a command that only some modes know."""
        return {"error": error(f"The command {name} has not been found")}

    # What happens to the guest.

    def power_off(self) -> None:
        if self.status == "running":
            self.finish("guest-shutdown", guest=True)

    def finish(self, reason: str, *, guest: bool) -> None:
        """End, once the client has been sent everything."""
        if self.deadline is None:
            self.event("SHUTDOWN", {"guest": guest, "reason": reason})
            self.deadline = time.monotonic() + DRAIN

    # The connection.

    def event(self, name: str, data: dict[str, object] | None = None) -> None:
        if self.negotiated:
            self.send(encode(event(name, data)))

    def send_message(self, message: dict[str, object]) -> None:
        self.send(encode(message))

    def send(self, data: bytes) -> None:
        if self.client and not self.hanging_up:
            self.unsent += data

    def accept(self) -> None:
        self.client = self.listener.accept()[0]
        self.client.setblocking(False)
        self.clients += 1
        self.greet()

    def hear(self, data: bytes) -> None:
        """Take what the client sent and execute every command that is complete."""
        text = (self.received + data).decode("utf-8", "surrogateescape").lstrip()
        while text and not self.hanging_up:
            try:
                request, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            self.execute(request)
        self.received = text.encode("utf-8", "surrogateescape")

    def hang_up(self) -> None:
        if self.client:
            self.client.close()
        self.client = None
        self.received = b""
        self.unsent.clear()
        self.hanging_up = self.negotiated = False

    def exchange(self, client: socket.socket, *, readable: bool, writable: bool) -> None:
        try:
            if writable:
                del self.unsent[: client.send(self.unsent[:MEGABYTE])]
            if readable:
                data = client.recv(65536)
                if not data:
                    self.hang_up()
                    return
                self.hear(data)
        except BlockingIOError:
            pass
        except OSError:
            self.hang_up()
            return
        if self.hanging_up and not self.unsent:
            self.hang_up()

    # The loop.

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.timers.append((time.monotonic() + seconds, action))

    def over(self) -> bool:
        return self.deadline is not None and (not self.unsent or time.monotonic() > self.deadline)

    def turn(self, wakeup: int) -> None:
        """Wait for the next thing to happen and see to it."""
        moments = [moment for moment, _ in self.timers]
        if self.deadline is not None:
            moments.append(self.deadline)
        timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
        readers: list[socket.socket | int] = [wakeup, *self.more]
        if self.client:
            readers.append(self.client)
        elif self.accepting:
            readers.append(self.listener)
        writers = [self.client] if self.client and self.unsent else []
        readable, writable, _ = select.select(readers, writers, [], timeout)
        if wakeup in readable:
            os.read(wakeup, 64)
            self.terminated()
        if self.listener in readable:
            self.accept()
        elif self.client:
            self.exchange(self.client, readable=self.client in readable, writable=bool(writable))
        for extra in [each for each in self.more if each in readable]:
            self.more[extra]()
        now = time.monotonic()
        due = [timer for timer in self.timers if timer[0] <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for _, action in due:
            action()

    def serve(self) -> None:
        """Do all of it until the end."""
        wakeup, signalled = os.pipe()
        os.set_blocking(signalled, False)
        signal.set_wakeup_fd(signalled)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self.started()
        while not self.over():
            self.turn(wakeup)
        for fd in (QMP_FD, SERIAL_FD):
            with contextlib.suppress(OSError, TypeError, ValueError), socket.socket(fileno=fd) as bound:
                os.unlink(bound.getsockname())


def greeting() -> dict[str, object]:
    version = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "fake"}
    return {"QMP": {"version": version, "capabilities": ["oob"]}}


def event(name: str, data: dict[str, object] | None = None) -> dict[str, object]:
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    message: dict[str, object] = {
        "timestamp": {"seconds": seconds, "microseconds": microseconds},
        "event": name,
    }
    return message if data is None else message | {"data": data}


def error(text: str) -> dict[str, object]:
    return {"class": "CommandNotFound", "desc": text}


def encode(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


class NoGreeting(Fake):
    """Accepts, and never sends a byte."""

    def greet(self) -> None:
        pass

    def execute(self, request: dict[str, object]) -> None:
        pass


class NoAccept(Fake):
    """Never accepts."""

    def started(self) -> None:
        self.accepting = False


class HalfJson(NoGreeting):
    """Sends half a greeting, and then nothing."""

    def greet(self) -> None:
        whole = encode(greeting())
        self.send(whole[: len(whole) // 2])


class Garbage(NoGreeting):
    """Greets with every byte there is, and then nothing."""

    def greet(self) -> None:
        self.send(bytes(range(256)) * 16 + b"\n")


class Huge(Fake):
    """Greets with a line of `megabytes`, which is proper JSON."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.megabytes = options.number("megabytes", 20)

    def greet(self) -> None:
        self.send_message(greeting() | {"padding": "x" * int(self.megabytes * MEGABYTE)})


class HugeReply(Fake):
    """Answers `query-status` with a line of `megabytes`, which is proper JSON."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.megabytes = options.number("megabytes", 20)

    def reply(self, command: object, message: dict[str, object]) -> None:
        if command == "query-status":
            message = message | {"padding": "x" * int(self.megabytes * MEGABYTE)}
        super().reply(command, message)


class WrongIds(Fake):
    """Answers every command under an id that nobody gave."""

    def reply(self, command: object, message: dict[str, object]) -> None:
        super().reply(command, message | {"id": f"not {message.get('id')}"})


class EofReply(Fake):
    """Closes the connection in the middle of a reply to `query-status`, on every connection."""

    last = sys.maxsize

    def reply(self, command: object, message: dict[str, object]) -> None:
        if command == "query-status" and self.clients <= self.last:
            whole = encode(message)
            self.send(whole[: len(whole) // 2])
            self.hanging_up = True
        else:
            super().reply(command, message)


class EofOnce(EofReply):
    """The same on the first connection only."""

    last = 1


class Deaf(Fake):
    """Answers nothing once `cont` was answered and greets nobody any more; SIGTERM still ends it."""

    def greet(self) -> None:
        if self.status == "prelaunch":
            super().greet()

    def execute(self, request: dict[str, object]) -> None:
        if self.status == "prelaunch":
            super().execute(request)


class Ignore(Fake):
    """Ignores the power button."""

    def press(self) -> None:
        pass


class Stubborn(Ignore):
    """Ignores the power button, `quit` and SIGTERM."""

    def quit_asked(self) -> None:
        pass

    def terminated(self) -> None:
        pass


class Stuck(Fake):
    """Says that the guest is off, by itself after `seconds` (0: never), and then neither answers nor ends."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.seconds = options.number("seconds", 0)
        self.stuck = False

    def ran(self) -> None:
        if self.seconds:
            self.later(self.seconds, self.power_off)

    def finish(self, reason: str, *, guest: bool) -> None:
        if not self.stuck:
            self.event("SHUTDOWN", {"guest": guest, "reason": reason})
            self.stuck = True

    def execute(self, request: dict[str, object]) -> None:
        if not self.stuck:
            super().execute(request)


class Flood(Fake):
    """Sends `rate` events a second for `seconds` after `cont`, and then powers off."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rate = options.number("rate", 80_000)
        self.seconds = options.number("seconds", 5)
        self.begun = 0.0
        self.sent = 0

    def ran(self) -> None:
        self.begun = time.monotonic()
        self.pour()

    def pour(self) -> None:
        passed = min(time.monotonic() - self.begun, self.seconds)
        due = int(passed * self.rate) - self.sent
        self.sent += due
        if self.negotiated:
            self.send(encode(event("GUEST_PANICKED", {"action": "run"})) * due)
        if passed < self.seconds:
            self.later(0.005, self.pour)
        else:
            self.finish("guest-shutdown", guest=True)


class Stderr(Fake):
    """Writes `megabytes` to standard error after `cont`, and goes on answering meanwhile."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.left = int(options.number("megabytes", 100) * MEGABYTE)

    def ran(self) -> None:
        line = b"fakeqemu: " + b"x" * 89 + b"\n"
        self.left -= os.write(2, (line * 2000)[: self.left])
        if self.left:
            self.later(0, self.ran)


class Exit(Fake):
    r"""Prints `message`, with escapes such as \n and \x1b, and exits with `status`; accepts nobody."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.code = int(options.number("status", 1))
        text = options.text("message", "qemu-system-x86_64: -fake exit: invalid option")
        self.message = os.fsencode(text).decode("unicode_escape").encode("latin-1") + b"\n"

    def started(self) -> None:
        os.write(2, self.message)
        sys.exit(self.code)


class SlowStart(Fake):
    """Greets nobody in its first `seconds`."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.seconds = options.number("seconds", 2)

    def started(self) -> None:
        self.accepting = False
        self.later(self.seconds, self.open)

    def open(self) -> None:
        self.accepting = True


class Die(Fake):
    """Sends itself `signal`, `after` so many seconds of running."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.signal = int(options.number("signal", signal.SIGKILL))
        self.after = options.number("after", 0.2)

    def ran(self) -> None:
        self.later(self.after, lambda: os.kill(os.getpid(), self.signal))


class Eat(Fake):
    """Takes more and more memory as soon as it runs."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.eaten: list[bytes] = []

    def ran(self) -> None:
        self.eaten.append(b"x" * 8 * MEGABYTE)
        self.later(0, self.ran)


class Panic(Fake):
    """Its guest panics as soon as it runs, and QEMU shuts down."""

    def ran(self) -> None:
        self.event("GUEST_PANICKED", {"action": "poweroff"})
        self.finish("guest-panic", guest=True)


class IoError(Fake):
    """Stops with an I/O error as soon as it runs; `cont` resumes for good."""

    def ran(self) -> None:
        self.status = "io-error"
        detail = {"device": "", "node-name": "hda", "reason": "No space left on device", "nospace": True}
        self.event("BLOCK_IO_ERROR", detail | {"operation": "write", "action": "stop"})
        self.event("STOP")


class GivenUp(Fake):
    """Its guest is given up as soon as it runs, as by a KVM that fails; nothing but `quit` does anything."""

    def ran(self) -> None:
        self.status = "internal-error"
        self.event("STOP")


class Liar(Fake):
    """Answers the command `to` with `message`, JSON or not, once the guest runs; `to=event`: sends it unasked.

    In a message, {zeros} stands for `zeros` zeros, {open} and {close} for as many opening and closing brackets.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        count = int(options.number("zeros", 400))
        self.to = options.text("to", "query-blockstats")
        lie = options.text("message", "null")
        for mark, text in (("{zeros}", "0"), ("{open}", "["), ("{close}", "]")):
            lie = lie.replace(mark, text * count)
        self.lie = lie.encode()

    def ran(self) -> None:
        if self.to == "event":
            self.send(self.lie + b"\r\n")
        elif self.to == "query-status":
            self.event("STOP")  # which has it asked at once

    def other(self, name: object, arguments: dict[str, object]) -> dict[str, object]:
        return {"return": {}} if name in (self.to, "remove-fd") else super().other(name, arguments)

    def reply(self, command: object, message: dict[str, object]) -> None:
        if command == self.to and self.status != "prelaunch":
            self.send(b'{"return": %b, "id": %b}\r\n' % (self.lie, json.dumps(message.get("id")).encode()))
        else:
            super().reply(command, message)


class Cards(Fake):
    """Has network cards that come and go, and holds TAPs of this host behind them.

    The guest lets go of a card `letgo` seconds after `device_del`, never if that is negative. Card number
    `refuse` is refused with `message`. What `mute` names, with + between, is neither done nor answered;
    what `know` names, such as `set_link`, is done, and nothing comes of it.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.letgo = options.number("letgo", 0.2)
        self.refused = f"nic{int(options.number('refuse', -1))}"
        self.muted = options.text("mute", "").split("+")
        self.words = options.text("message", "no such device")
        self.known = options.text("know", "").split("+")
        self.held: dict[str, int | None] = {}
        self.cards: set[str] = set()

    def started(self) -> None:
        for option, value in itertools.pairwise(sys.argv):
            first, *pairs = value.split(",")
            arguments: dict[str, object] = {
                key: item for key, _, item in (pair.partition("=") for pair in pairs)
            }
            if option == "-netdev":
                self.netdev_add({"type": first, **arguments})
            elif option == "-device" and "netdev" in arguments:
                self.cards.add(str(arguments["id"]))

    def netdev_add(self, arguments: dict[str, object]) -> None:
        device = None
        if arguments["type"] == "tap":
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            name = os.fsencode(str(arguments["ifname"]))
            # TUNSETIFF with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR
            fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name, 0x0002 | 0x1000 | 0x4000))
        self.held[str(arguments["id"])] = device

    def netdev_del(self, identifier: str) -> None:
        device = self.held.pop(identifier)
        if device is not None:
            os.close(device)

    def let_go(self, card: str) -> None:
        self.cards.discard(card)
        self.event("DEVICE_DELETED", {"path": f"/machine/peripheral/{card}/virtio-backend"})
        self.event("DEVICE_DELETED", {"device": card, "path": f"/machine/peripheral/{card}"})

    def other(self, name: object, arguments: dict[str, object]) -> dict[str, object]:
        identifier = str(arguments.get("id"))
        if name in self.muted + self.known:
            return {"return": {}}
        if name == "qom-list":
            cards = [{"name": card, "type": "child<e1000>"} for card in sorted(self.cards)]
            return {"return": [{"name": "type", "type": "string"}, *cards]}
        if name == "netdev_add":
            self.netdev_add(arguments)
        elif name == "device_add" and identifier == self.refused:
            return {"error": {"class": "GenericError", "desc": self.words}}
        elif name == "device_add":
            self.cards.add(identifier)
        elif name == "netdev_del" and identifier in self.held:
            self.netdev_del(identifier)
        elif name == "device_del" and identifier in self.cards:
            if self.letgo >= 0:
                self.later(self.letgo, lambda: self.let_go(identifier))
        elif name in ("device_del", "netdev_del"):
            return {"error": {"class": "DeviceNotFound", "desc": f"Device '{identifier}' not found"}}
        else:
            return super().other(name, arguments)
        return {"return": {}}

    def reply(self, command: object, message: dict[str, object]) -> None:
        if command not in self.muted:
            super().reply(command, message)


class Agent(Fake):
    """Has a guest agent: `does` is well, silent, endless, or lies: it says that it powers the guest down."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.does = options.text("does", "well")

    def started(self) -> None:
        listener = socket.socket(fileno=AGENT_FD)
        self.more[listener] = lambda: self.take(listener)

    def take(self, listener: socket.socket) -> None:
        connection = listener.accept()[0]
        self.more[connection] = lambda: self.listen(connection)

    def listen(self, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):  # the daemon may hang up at any moment
            data = connection.recv(65536)
        if not data:
            del self.more[connection]
            connection.close()
        elif self.does == "endless":
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while True:
                    connection.send(b"x" * 65536)
        elif self.does != "silent":
            for line in data.splitlines():
                self.answer(connection, json.loads(line.lstrip(b"\xff")))

    def answer(self, connection: socket.socket, request: dict[str, object]) -> None:
        name, arguments = request["execute"], request["arguments"]
        result: object = {}
        if name == "guest-sync-delimited" and isinstance(arguments, dict):
            connection.send(b"\xff")
            result = arguments["id"]
        elif name == "guest-shutdown":
            if self.does != "lies":
                self.later(self.delay, self.power_off)
            return
        elif name == "guest-network-get-interfaces":
            address = [{"ip-address": "192.0.2.7"}, {"ip-address": "fe80::1"}]
            result = [{"hardware-address": "02:11:9b:af:00:00", "ip-addresses": address}]
        connection.send(json.dumps({"return": result}).encode() + b"\n")


MODES: dict[str, type[Fake]] = {
    "good": Fake,
    "nogreeting": NoGreeting,
    "noaccept": NoAccept,
    "halfjson": HalfJson,
    "garbage": Garbage,
    "huge": Huge,
    "hugereply": HugeReply,
    "wrongids": WrongIds,
    "eofreply": EofReply,
    "eofonce": EofOnce,
    "deaf": Deaf,
    "ignore": Ignore,
    "stubborn": Stubborn,
    "stuck": Stuck,
    "flood": Flood,
    "stderr": Stderr,
    "exit": Exit,
    "slowstart": SlowStart,
    "die": Die,
    "eat": Eat,
    "panic": Panic,
    "ioerror": IoError,
    "givenup": GivenUp,
    "liar": Liar,
    "cards": Cards,
    "agent": Agent,
}


@contextlib.contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Keep a locked file with our pid, as `-pidfile` asks for."""
    if path is None:
        yield
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as refused:
        sys.exit(f"fakeqemu: cannot create PID file: Cannot lock pid file: {refused.strerror}")
    os.truncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def argument(argv: list[str], option: str) -> str | None:
    """Return what follows an option, the last time it is given."""
    values = [value for word, value in itertools.pairwise(argv) if word == option]
    return values[-1] if values else None


def main(argv: list[str]) -> None:
    if argv[-1:] and argv[-1].endswith("help"):
        return  # it knows nothing
    options = Options(argument(argv, "-fake") or "good")
    try:
        if options.mode not in MODES:
            raise Mistake(f"no mode {options.mode!r}")
        fake = MODES[options.mode](options)
        options.must_be_used()
    except Mistake as mistake:
        sys.exit(f"fakeqemu: -fake: {mistake}")
    with pid_file(argument(argv, "-pidfile")):
        fake.serve()
