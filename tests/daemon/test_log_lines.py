"""The lines of the daemon's log, whatever clients and QEMU say."""

import re

import pytest
from daemons import Daemon

from vmessctl.client import Client
from vmessd.core.errors import VmessError


def test_c36_nothing_a_client_or_qemu_says_makes_a_line_of_its_own(daemon: Daemon) -> None:
    (daemon.root / "newvm0").mkdir()
    (daemon.root / "newvm0" / "EXARGS").write_text("'-foo\n<0>evil\x1b[31m'\n")
    client = Client([str(daemon.socket)])
    for call in (
        {"method": "Make", "vm": "a\n<0>evil\x1b[31m"},
        {"method": "Set", "vm": "newvm0", "setting": "x\n<0>evil", "value": "\x1b[31m\n<0>evil"},
    ):
        method = call.pop("method")
        with pytest.raises(VmessError) as caught:
            client.call(method, **call)
        assert caught.value.message.isprintable()
    client.close()
    result = daemon.vmess("newvm", "start")
    assert result.returncode == 1
    complaint, hint = result.stderr.splitlines()
    assert "evil" in complaint
    assert hint.startswith("  hint: ")
    assert "\x1b" not in result.stderr + daemon.vmess("newvm").stdout
    lines = daemon.log.read_text().split("\n")[:-1]
    assert [line for line in lines if not re.match("20[0-9: -]{17} ", line) or not line.isprintable()] == []
    assert len([line for line in lines if "evil" in line]) >= 3
    assert not [line for line in lines if line.startswith("<0>")]
