"""A daemon that is killed at each moment of setting what cloud-init finds: the next one has a whole medium."""

import io
import itertools
import os
from pathlib import Path

import pycdlib
from daemons import UNIT, Daemon

# vmessd that kills itself at one of the calls that change the VM directory while cloud-init is being set.
MORTAL = """
import os, signal, types
from vmessd.storage import cloud_init, safefile
left = {moment}
armed = False
def dying(whole):
    def call(*arguments, **options):
        global left
        left -= armed
        if armed and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **options)
    return call
changed = types.SimpleNamespace(**vars(os))
for name in ("open", "fsync", "rename", "unlink"):
    setattr(changed, name, dying(getattr(os, name)))
safefile.os = changed
write = cloud_init.write
def armed_write(*arguments, **options):
    global armed
    armed = True
    return write(*arguments, **options)
cloud_init.write = armed_write
from vmessd.__main__ import main
raise SystemExit(main())
"""
OLD = {"USER_DATA": "#!/bin/sh\n# old\n", "META_DATA": "instance-id: old\nlocal-hostname: old\n"}
NEW = {"USER_DATA": "#!/bin/sh\n# new\n", "NETWORK_CONFIG": "version: 2\n"}
NAMES = ("USER_DATA", "META_DATA", "NETWORK_CONFIG")


def on_medium(path: Path) -> dict[str, str]:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    found = {}
    for child in list(iso.list_children(rr_path="/"))[2:]:
        out = io.BytesIO()
        name = child.rock_ridge.name().decode()
        iso.get_file_from_iso_fp(out, rr_path=f"/{name}")
        found[name.upper().replace("-", "_")] = out.getvalue().decode()
    iso.close()
    return found


def present(directory: Path) -> dict[str, str]:
    return {name: (directory / name).read_text() for name in NAMES if (directory / name).exists()}


def test_c97_killed_at_any_moment_the_medium_is_whole(
    fake_daemon: Daemon, tmp_path: Path, is_long: bool
) -> None:
    daemon, whole = fake_daemon, fake_daemon.program
    directory = daemon.make_fake("newvm0", "good")
    (tmp_path / "u").write_text(NEW["USER_DATA"])
    (tmp_path / "n").write_text(NEW["NETWORK_CONFIG"])
    (tmp_path / "m").write_text("")
    for moment in itertools.count(1, 1 if is_long else 5):
        daemon.stop()
        for name in NAMES:
            (directory / name).unlink(missing_ok=True)
        for name, text in OLD.items():
            (directory / name).write_text(text)
        daemon.program = ("-c", MORTAL.format(moment=moment))
        daemon.start()
        words = ("newvm", "cloud-init", *(str(tmp_path / name) for name in "umn"))
        survived = daemon.vmess(*words).returncode == 0
        if not survived:
            assert daemon.process is not None
            daemon.process.wait(10 * UNIT)
            daemon.process = None
        else:
            daemon.stop()
        daemon.program = whole
        daemon.start()
        now = present(directory)
        for name, text in now.items():
            assert text in (OLD.get(name), {**NEW, "META_DATA": ""}.get(name)), (moment, name)
        daemon.done("newvm", "start")
        assert not [name for name in os.listdir(directory) if name.startswith(".vmess")], moment
        found = on_medium(directory / "newvm0-cloud-init.iso")
        assert {name: found[name] for name in now if name != "META_DATA"} == {
            name: text for name, text in now.items() if name != "META_DATA"
        }, moment
        assert "instance-id" in found["META_DATA"]
        daemon.done("newvm", "stop", "force")
        if survived:
            break
    assert moment > 8, "there are that many moments"
