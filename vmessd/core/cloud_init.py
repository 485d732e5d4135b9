"""The documents of cloud-init: names of their files, what they begin with, and those for the usual case. Pure.

Sources: cloud-init's documentation, "NoCloud" and "User-data formats"; `cloudinit/user_data.py` for MIME and
gzip.
"""

from __future__ import annotations

from vmessd.core.errors import InvalidValue, quoted, shell_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

USER_DATA, META_DATA, NETWORK_CONFIG = "USER_DATA", "META_DATA", "NETWORK_CONFIG"
ON_MEDIUM = {USER_DATA: "user-data", META_DATA: "meta-data", NETWORK_CONFIG: "network-config"}
"""The files in the VM directory, each with its name on the medium."""
LIMIT = 2**20
"""Maximum bytes of each file."""
MEDIUM = "cloud-init"
"""What the medium is called among the drives, and in the name of its file."""
NAME_MAX = 32  # useradd(8)
HOST_NAME_MAX = 63  # of a label (RFC 1035)
KEYS_MAX = 100
PASSWORD_MAX = 200  # openssl-passwd(1) cuts passwords off after 256 bytes

_HEADERS = ("#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "## template: jinja")
_CLOUD_CONFIG = _HEADERS[0]
_GZIP = b"\x1f\x8b"
_MIME = b"mime-version:"
_MIME_WITHIN = 4096  # bytes in which cloud-init looks for it
_KEY_TYPES = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-")
_PEM = "-----BEGIN"
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset("0123456789")


def medium_file(vm: str) -> str:
    """Return the name of the medium in the VM's directory: `newvm0-cloud-init.iso`."""
    return f"{vm}-{MEDIUM}.iso"


# -- What is given --


def kind(data: bytes) -> str | None:
    """Return what user-data is, by what it begins with; None if cloud-init would not know."""
    if data.startswith(_GZIP):
        return "gzip"
    if _MIME in data[:_MIME_WITHIN].lower():
        return "MIME"
    return next((header for header in _HEADERS if data.startswith(header.encode())), None)


def check_user_data(data: bytes) -> None:
    """Raise InvalidValue for user-data that cloud-init would ignore."""
    if kind(data) is None:
        first = data.partition(b"\n")[0].decode(errors="replace").strip("\r")
        raise InvalidValue(
            f"user-data that begins with {quoted(first, 40)} is ignored by cloud-init; it must begin with "
            f"{', '.join(_HEADERS[:-1])}, or be MIME or gzip",
            hint=f"the first line of cloud-config is {_CLOUD_CONFIG}; --raw takes any data",
        )


def check_text(name: str, data: bytes) -> None:
    """Raise InvalidValue unless the content of META_DATA or NETWORK_CONFIG is text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidValue(f"{ON_MEDIUM[name]} is not text; it must be YAML in UTF-8")


def too_large(what: str) -> InvalidValue:
    """Return the error for a file with more than :data:`LIMIT` bytes."""
    return InvalidValue(
        f"{what} has more than 1 MiB, the most that user-data, meta-data and network-config may have"
    )


def user_name(text: str) -> str:
    """Return a valid name of a user; raises InvalidValue."""
    if not is_user_name(text):
        raise InvalidValue(
            f"user {quoted(text)} is not a name of up to {NAME_MAX} letters a-z, digits, _ and -, "
            "which begins with a letter or _"
        )
    return text


def is_user_name(text: str) -> bool:
    """Tell whether a text is a name that useradd(8) accepts everywhere."""
    first, rest = text[:1], text[1:]
    begins = first in _LETTERS or first == "_"
    return (
        bool(first) and begins and len(text) <= NAME_MAX and (_LETTERS | _DIGITS | {"_", "-"}).issuperset(rest)
    )


def host_name(text: str) -> str:
    """Return a valid host name, with or without a domain; raises InvalidValue."""
    labels = text.split(".")
    allowed = _LETTERS | _DIGITS | {"-"}
    fits = all(
        0 < len(label) <= HOST_NAME_MAX
        and allowed.issuperset(label.lower())
        and "-" not in (label[0], label[-1])
        for label in labels
    )
    if not fits or len(text) > 253:  # RFC 1035
        raise InvalidValue(f"hostname {quoted(text)} is not made of letters, digits and hyphens, such as web-1")
    return text


def public_keys(file: str, text: str) -> list[str]:
    """Return the public SSH keys in a text, which may be that of an authorized_keys file (sshd(8)).

    Raises:
        InvalidValue: there are none, or a line is not a key; names the file.
    """
    if text.lstrip().startswith(_PEM):
        raise InvalidValue(
            f"{quoted(file, 300)} is a private key, which stays here; the guest needs the public one",
            hint=shell_line(["ssh-keygen", "-y", "-f", file]),
        )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    for line in keys:
        if not line.isprintable() or not any(word.startswith(_KEY_TYPES) for word in line.split()):
            raise InvalidValue(
                f"{quoted(file, 300)} has a line that is not a public SSH key: {quoted(line, 40)}"
            )
    if not 0 < len(keys) <= KEYS_MAX:
        raise InvalidValue(f"{quoted(file, 300)} has {len(keys)} public SSH keys; 1 to {KEYS_MAX} are right")
    return keys


def password(text: str) -> str:
    """Return a valid password; raises InvalidValue, which does not show it."""
    if not 0 < len(text.encode(errors="surrogateescape")) <= PASSWORD_MAX or not text.isprintable():
        raise InvalidValue(
            f"the password must be text in UTF-8, of 1 to {PASSWORD_MAX} bytes, without control characters"
        )
    return text


# -- What is made --


def user_data(user: str, keys: Sequence[str] = (), password_hash: str | None = None) -> bytes:
    """Return user-data that makes a user who may become root, with keys, a password (crypt(5)), or both.

    The values are JSON, which is YAML whatever they contain, so far as YAML allows the characters.
    """
    account: dict[str, Any] = {
        "name": user,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
        "lock_passwd": password_hash is None,
    }
    if password_hash is not None:
        account["hashed_passwd"] = password_hash
    if keys:
        account["ssh_authorized_keys"] = list(keys)
    document: dict[str, Any] = {"users": [account]}
    if user == "root":
        document["disable_root"] = False
    if not keys:
        document["ssh_pwauth"] = True
    return cloud_config(document)


def cloud_config(document: dict[str, Any]) -> bytes:
    """Return a document as cloud-config."""
    import json  # noqa: PLC0415 -- the client imports this module, and json is slow to import

    return f"{_CLOUD_CONFIG}\n{json.dumps(document, indent=1, ensure_ascii=False)}\n".encode()


def meta_data(hostname: str) -> bytes:
    """Return meta-data with a host name."""
    return f'local-hostname: "{hostname}"\n'.encode()


def user_of(data: bytes) -> str | None:
    """Return the user in user-data as :func:`user_data` makes it; None for any other, which nobody parses.

    The file is not trusted.
    """
    import json  # noqa: PLC0415 -- as above

    try:
        document = json.loads(data.decode().partition("\n")[2])
        name = document["users"][0]["name"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and is_user_name(name) else None
