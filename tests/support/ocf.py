"""The OCF agent of contrib/cluster, run as a cluster runs it: by its environment, judged by its exit status."""

import os
import re
import subprocess
import sys
from pathlib import Path

import debs
from daemons import TESTS, UNIT, Daemon

AGENT = TESTS.parent / "contrib/cluster/vmess"
WORDS = {0: "success", 1: "failed", 3: "unimplemented", 5: "not installed", 6: "misconfigured"} | {
    7: "not running",
    190: "degraded",
}
"""The exit statuses of an agent (OCF Resource Agent API 1.1)."""
PROGRAM = f"""\
#!{sys.executable} -IS
import runpy, sys
sys.argv[0] = "vmessctl"
runpy.run_path("{TESTS}/support/vmess.py", run_name="client").get("program")()
"""


class Resource:
    """A VM of a daemon, as its cluster sees it."""

    def __init__(self, daemon: Daemon, vm: str) -> None:
        self.daemon = daemon
        self.vm = vm
        self.said = ""
        """What the agent gave as its reason at last."""
        self._program = daemon.root.parent / "vmessctl"
        self._program.write_text(PROGRAM)
        self._program.chmod(0o755)

    def environment(self, **parameters: object) -> dict[str, str]:
        """Return what the cluster says to the agent."""
        given = {"name": self.vm, "vmdir": self.daemon.root, "socket": self.daemon.socket}
        given |= {"program": self._program, "CRM_meta_timeout": 30_000, **parameters}
        own = {name: value for name, value in os.environ.items() if not name.startswith("VMESS")}
        return {**own, **{f"OCF_RESKEY_{name}": str(value) for name, value in given.items()}}

    def do(self, action: str, **parameters: object) -> str:
        """Carry an action out, and return what its exit status means."""
        done = subprocess.run(
            [AGENT, action],
            env=self.environment(**parameters),
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * UNIT,
        )
        assert not done.stdout, done
        reasons = re.findall("^ocf-exit-reason:(.*)$", done.stderr, re.MULTILINE)
        self.said = reasons[-1] if reasons else ""
        assert bool(reasons) is (done.returncode not in (0, 7)), done
        return WORDS[done.returncode]

    def as_owner(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run the client as the agent does."""
        environment = self.daemon.environment() | {
            "VMESS_OWNER": "pacemaker",
            "VMESS_VMDIR": str(self.daemon.root),
        }
        return subprocess.run(
            [self._program, self.vm, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * UNIT,
        )


def tester(place: Path) -> tuple[Path, Path]:
    """Return ocf-tester(8) and the OCF_ROOT of its package; it looks for its DTD where it was unpacked."""
    tree = debs.unpacked("resource-agents")
    script = place / "ocf-tester"
    text = (tree / "usr/sbin/ocf-tester").read_text()
    script.write_text(text.replace("DATADIR=/usr/share", f"DATADIR={tree}/usr/share"))
    script.chmod(0o755)
    return script, tree / "usr/lib/ocf"
