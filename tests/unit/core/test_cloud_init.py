"""What cloud-init is given: what is refused, and that what is made means what was said."""

import gzip
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vmessd.core import cloud_init
from vmessd.core.errors import InvalidValue

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKm8 you@host"
HASH = "$6$salt$hash/with.all"


def read(data: bytes) -> dict[str, Any]:
    """Read cloud-config as cloud-init does: as YAML."""
    assert data.startswith(b"#cloud-config\n")
    document: dict[str, Any] = yaml.safe_load(data)
    return document


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"#cloud-config\npackages: [x]\n", "#cloud-config"),
        (b"#cloud-config-archive\n", "#cloud-config"),
        (b"#!/bin/sh\n", "#!"),
        (b"#include\nhttp://x\n", "#include"),
        (b"#include-once\n", "#include"),
        (b"#cloud-boothook\n", "#cloud-boothook"),
        (b"#part-handler\n", "#part-handler"),
        (b"## template: jinja\n#cloud-config\n", "## template: jinja"),
        (b'Content-Type: multipart/mixed; boundary="x"\nMIME-Version: 1.0\n', "MIME"),
        (b"From nobody\nMime-Version: 1.0\n", "MIME"),
        (gzip.compress(b"#cloud-config\n", mtime=0), "gzip"),
    ],
)
def test_what_cloud_init_understands_is_accepted(data: bytes, kind: str) -> None:
    assert cloud_init.kind(data) == kind
    cloud_init.check_user_data(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"packages: [x]\n", b"# cloud-config\n", b"\xef\xbb\xbf#cloud-config\n", b"\n#!/bin/sh", b"\0"],
)
def test_what_cloud_init_would_ignore_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(
        InvalidValue, match="ignored by cloud-init; it must begin with #cloud-config, #!"
    ) as said:
        cloud_init.check_user_data(data)
    assert said.value.message.isprintable()
    assert "--raw" in str(said.value.hint)


def test_meta_data_and_network_config_are_text() -> None:
    cloud_init.check_text("META_DATA", "instance-id: ä\n".encode())
    for data in (b"\xff", b"a\0b"):
        with pytest.raises(InvalidValue, match="network-config is not text"):
            cloud_init.check_text("NETWORK_CONFIG", data)


@pytest.mark.parametrize("name", ["you", "_x", "a-b_1", "a" * 32])
def test_a_user_name(name: str) -> None:
    assert cloud_init.user_name(name) == name


@pytest.mark.parametrize("name", ["", "-you", "1a", "You", "a b", "a:b", "ä", "a" * 33, "a\n", "a'"])
def test_no_user_name(name: str) -> None:
    with pytest.raises(InvalidValue, match="is not a name of up to 32 letters"):
        cloud_init.user_name(name)


@pytest.mark.parametrize("name", ["web", "web-1", "Web-1.Lab.example", "1"])
def test_a_host_name(name: str) -> None:
    assert cloud_init.host_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a..b", "a_b", 'a"', "a\n", "ä", "a" * 64, ".".join(["abc"] * 64)]
)
def test_no_host_name(name: str) -> None:
    with pytest.raises(InvalidValue, match="hostname"):
        cloud_init.host_name(name)


def test_public_keys_are_taken_line_by_line() -> None:
    text = f'# mine\n\n{KEY}\n  no-pty,command="x"  {KEY}\r\n'
    assert cloud_init.public_keys("k", text) == [KEY, f'no-pty,command="x" {KEY}']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 public SSH keys"),
        ("# nothing\n", "has 0 public SSH keys"),
        ("hello\n", "a line that is not a public SSH key: 'hello'"),
        (f"{KEY}\x1b[2J\n", "a line that is not a public SSH key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "is a private key"),
        (f"{KEY}\n" * 101, "has 101 public SSH keys"),
    ],
)
def test_no_public_keys(text: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        cloud_init.public_keys("/k", text)


@pytest.mark.parametrize("text", ["", "a\n", "a\x1b", "ä" * 101, "l\udce9"])
def test_no_password(text: str) -> None:
    with pytest.raises(InvalidValue, match="the password must be text in UTF-8, of 1 to 200 bytes") as said:
        cloud_init.password(text)
    assert not text or text not in said.value.message


def test_the_usual_user_data() -> None:
    assert read(cloud_init.user_data("you", [KEY])) == {
        "users": [
            {
                "name": "you",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "shell": "/bin/bash",
                "lock_passwd": True,
                "ssh_authorized_keys": [KEY],
            }
        ]
    }
    document = read(cloud_init.user_data("root", password_hash=HASH))
    assert (document["disable_root"], document["ssh_pwauth"]) == (False, True)
    assert document["users"][0]["hashed_passwd"] == HASH
    assert document["users"][0]["lock_passwd"] is False


@given(
    st.sampled_from(["yes", "null", "no", "_", "true", "e1", "a-b"]),
    st.lists(st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" ")), max_size=4),
    st.text(st.characters(exclude_categories=("C", "Z"))),
)
def test_yaml_reads_what_was_meant(name: str, comments: list[str], password_hash: str) -> None:
    keys = [f"{KEY} {' '.join(comment.split())}" for comment in comments]
    keys = [key for key in keys if key.isprintable()]
    data = cloud_init.user_data(name, keys, password_hash)
    assert read(data) == json.loads(data.decode().partition("\n")[2])
    [account] = read(data)["users"]
    assert (account["name"], account.get("ssh_authorized_keys", [])) == (name, keys)
    assert account["hashed_passwd"] == password_hash
    assert cloud_init.user_of(data) == name


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?", fullmatch=True))
def test_yaml_reads_the_host_name_as_text(name: str) -> None:
    assert yaml.safe_load(cloud_init.meta_data(cloud_init.host_name(name))) == {"local-hostname": name}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"#cloud-config\nusers: [{name: you}]\n",
        b'#cloud-config\n{"users": []}',
        b'#cloud-config\n{"users": [{"name": "-oProxyCommand=x"}]}',
        b'#cloud-config\n{"users": [{"name": 1}]}',
        b'#cloud-config\n{"users": "x"}',
        b"#cloud-config\n[]",
        b"#cloud-config\n" + b"[" * 100_000,
    ],
)
def test_a_user_of_another_form_is_not_guessed(data: bytes) -> None:
    assert cloud_init.user_of(data) is None
