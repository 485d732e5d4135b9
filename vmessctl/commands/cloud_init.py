"""The verb cloud-init: what the system in a guest is told at its first start."""

from __future__ import annotations

import os
import sys

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands import passed_files
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import emit, for_each, say, show, tell
from vmessd.core import cloud_init
from vmessd.core.cloud_init import META_DATA, NETWORK_CONFIG, USER_DATA
from vmessd.core.errors import DONE, Failed, InvalidValue, counted, printable, quoted, reason, shell_line
from vmessd.core.words import OFF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply

ORDER = (USER_DATA, META_DATA, NETWORK_CONFIG)
"""The files in the order of the arguments."""
USUAL = (verbs.USER, verbs.KEY, verbs.PASSWORD, verbs.PASSWORD_FILE)
"""The options from which user-data is made."""
NEW_KEY = "to make a key: ssh-keygen -t ed25519"


def run(invocation: Invocation) -> int:
    """Set what cloud-init finds in VMs, remove it, or show it."""
    if not invocation.arguments and not _asked(invocation, *USUAL, verbs.HOSTNAME):
        return _show(invocation)
    files = _files(invocation)
    raw = verbs.RAW.flag in invocation.options
    names = {USER_DATA: "user_data", META_DATA: "meta_data", NETWORK_CONFIG: "network_config"}
    sizes = {names[name]: len(data) for name, data in files.items()}

    def work(client: Client, vm: str) -> int:
        passed = passed_files.sealed(b"".join(files[name] for name in ORDER if name in files))
        try:
            client.send("SetCloudInit", {"vm": vm, "files": 0, "raw": raw, **sizes}, descriptor=passed)
        finally:
            os.close(passed)
        reply = client.receive()[0]
        _report(invocation, client, vm, reply)
        return DONE

    return for_each(invocation, work)


def _report(invocation: Invocation, client: Client, vm: str, reply: Reply) -> None:
    """Report what was set, and when it takes effect."""
    emit(invocation, reply, vm)
    found = reply.get("cloud_init")
    tell(about(vm, phrase("cloud-init", what=_what(found) if found else "none")))
    if client.call("Status", vm=vm)["status"]["state"] not in OFF:
        say(f"{vm} is running; cloud-init takes effect at its next start")


def _what(found: Reply) -> str:
    """Return what cloud-init finds, in one line."""
    user = f"user {found['user']}, " if found["user"] else ""
    given = "" if user else f"{', '.join(file['name'] for file in found['files'])}, "
    return printable(f"{user}{given}hostname {found['hostname']}")


def _show(invocation: Invocation) -> int:
    """Show what cloud-init finds in VMs."""

    def work(client: Client, vm: str) -> int:
        show(invocation, client.call("CloudInit", vm=vm), lambda reply: "\n".join(lines(reply)), vm)
        return DONE

    return for_each(invocation, work)


def lines(reply: Reply) -> list[str]:
    """Return what cloud-init finds in a VM, for people; not the contents, which may be secret."""
    found = reply.get("cloud_init")
    if not found:
        return ["none"]
    told = []
    for file in found["files"]:
        kind = f", {file['kind']}" if file.get("kind") else ""
        ignored = ", which cloud-init ignores" if file["name"] == USER_DATA and not file.get("kind") else ""
        told.append(f"{file['name']}: {counted(file['size'], 'byte')}{kind}{ignored}")
    if found["user"]:
        told.append(f"user: {found['user']}")
    told += [f"hostname: {found['hostname']}", f"instance-id: {found['instance_id']}"]
    told.append(f"medium: {found['medium']}")
    return [printable(line) for line in told]


def _asked(invocation: Invocation, *options: verbs.Option) -> list[str]:
    """Return which of these options were given."""
    return [option.flag for option in options if option.flag in invocation.options]


def _files(invocation: Invocation) -> dict[str, bytes]:
    """Return the files to set, by their names in the VM directory; raises InvalidValue."""
    words, usual = invocation.arguments, _asked(invocation, *USUAL)
    if "none" in words:
        if len(words) > 1 or usual or _asked(invocation, verbs.HOSTNAME, verbs.RAW):
            raise InvalidValue(
                "cloud-init none takes nothing else", hint=f"usage: {invocation.command.usage()}"
            )
        return {}
    if words and usual:
        raise InvalidValue(f"{usual[0]} makes the user-data, so it cannot be given as {quoted(words[0])}, too")
    files = {name: _read(path) for name, path in zip(ORDER, words, strict=False)}
    hostname = invocation.options.get(verbs.HOSTNAME.flag)
    if hostname is not None:
        if META_DATA in files:
            raise InvalidValue(
                f"--hostname makes the meta-data, so it cannot be given as {quoted(words[1])}, too"
            )
        files[META_DATA] = cloud_init.meta_data(cloud_init.host_name(hostname))
    if usual:
        files[USER_DATA] = _usual(invocation)
    return files


def _usual(invocation: Invocation) -> bytes:
    """Return the user-data for a user with a key, a password or both; raises InvalidValue."""
    options = invocation.options
    user = cloud_init.user_name(options.get(verbs.USER.flag) or login_name())
    keys = []
    if verbs.KEY.flag in options:
        path = options[verbs.KEY.flag]
        keys = cloud_init.public_keys(path, _read(path, hint=NEW_KEY).decode(errors="replace"))
    if not keys and not _asked(invocation, verbs.PASSWORD, verbs.PASSWORD_FILE):
        raise InvalidValue(
            f"user {user} could not log in: give a public key, or a password",
            hint=f"{shell_line([PROGRAM.name, *invocation.vms])} cloud-init --key ~/.ssh/id_ed25519.pub",
        )
    password = _password(invocation)
    return cloud_init.user_data(user, keys, None if password is None else hashed(password))


def login_name() -> str:
    """Return the name under which this person is logged in here."""
    import pwd  # noqa: PLC0415 -- rarely needed

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise InvalidValue(
            f"uid {os.getuid()} has no name here; name the user with {verbs.USER.flag}"
        ) from None


def _password(invocation: Invocation) -> str | None:
    """Return the password from a file or the terminal; None if none is wanted. It is never an argument."""
    options = invocation.options
    if verbs.PASSWORD_FILE.flag in options:
        if verbs.PASSWORD.flag in options:
            raise InvalidValue(f"{verbs.PASSWORD.flag} and {verbs.PASSWORD_FILE.flag} exclude each other")
        data = _read(options[verbs.PASSWORD_FILE.flag])
        return cloud_init.password(data.decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r"))
    if verbs.PASSWORD.flag not in options:
        return None
    if not sys.stdin.isatty():
        raise InvalidValue(
            f"{verbs.PASSWORD.flag} asks for the password, and there is no terminal",
            hint=f"put it into a file: {verbs.PASSWORD_FILE.flag} FILE, or - for standard input",
        )
    user = options.get(verbs.USER.flag) or login_name()
    password = cloud_init.password(_typed(f"Password for {user} in the guest: "))
    if _typed("Retype password: ") != password:
        raise InvalidValue("the two passwords differ; nothing was changed")
    return password


def _typed(prompt: str) -> str:
    """Return what is typed, unseen, with surrogates for what is not text; raises InvalidValue."""
    import getpass  # noqa: PLC0415 -- only this needs it

    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise InvalidValue("no password was typed") from None
    except UnicodeDecodeError as error:
        return error.object.decode(errors="surrogateescape")


def hashed(password: str) -> str:
    """Return the hash of a password for crypt(5), with SHA-512, by openssl-passwd(1); raises Failed.

    The password goes through a pipe: arguments are visible to everybody on the host.
    """
    from vmessctl.output import foreground  # noqa: PLC0415 -- few verbs need it

    try:
        status, text = foreground.answer(["openssl", "passwd", "-6", "-stdin"], f"{password}\n")
    except OSError as error:
        raise Failed(
            f"openssl cannot be run, which hashes the password: {reason(error)}", hint="install openssl"
        ) from None
    if status or not text.startswith("$6$"):
        raise Failed(f"openssl passwd ended with status {status} and no hash", hint="try it: openssl passwd -6")
    return text.strip()


def _read(path: str, hint: str | None = None) -> bytes:
    """Return the content of a file, or of standard input for `-`; raises InvalidValue."""
    return passed_files.read(path, cloud_init.LIMIT, cloud_init.too_large, hint)
