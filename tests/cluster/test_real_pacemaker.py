"""Pacemaker and Corosync decide where VMs run: real ones, in three machines, with the agent as installed.

During each case all QEMUs are watched from outside, once a millisecond: never does a VM have two.
"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import guests
import pytest
from booted import CHECKOUT, ROOT, Stage
from clusters import AGENT, MONITOR, NODES, SMALL, Cluster, clustered
from daemons import UNIT, wait_for
from lives import Life, ran_together, together

pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(300 * UNIT)]

VM = "newvm0"
DEGRADED = 190
"""Exit status of a monitor (OCF): it runs, and is not well."""
AS_PACEMAKER = {"VMESS_OWNER": "pacemaker"}


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, float]]:
    """What was measured, in seconds; printed at the end."""
    measured: dict[str, float] = {}
    yield measured
    print("\n" + "\n".join(f"{seconds:7.3f} s  {what}" for what, seconds in measured.items()))


@pytest.fixture(scope="module")
def machines(
    stage: Stage, installed: list[Path], tmp_path_factory: pytest.TempPathFactory, figures: dict[str, float]
) -> Iterator[Cluster]:
    """Three machines with the VM, which is in the CIB; no Pacemaker runs yet."""
    begin = time.monotonic()
    layers = clustered(stage, installed, VM)
    figures["packages and agent in a layer"] = time.monotonic() - begin
    with contextlib.closing(Cluster(stage, layers, tmp_path_factory.mktemp("cluster"))) as cluster:
        begin = time.monotonic()
        cluster.boot(*NODES)
        figures["boot of three machines"] = time.monotonic() - begin
        cluster.make(VM)
        yield cluster


@pytest.fixture
def watched(machines: Cluster, figures: dict[str, float]) -> Iterator[Cluster]:
    """The machines; two QEMUs of one VM during the test fail it."""
    begin = time.monotonic()
    machines.watcher.look(again=True)
    try:
        yield machines
    finally:
        machines.tell()
    seen = machines.watcher.look()
    during = [life for life in seen.lives if life.last >= begin]
    assert not ran_together(during)
    assert machines.may_meet or not together(during)
    assert seen.is_close(), f"{seen.worst} s without a look"
    worst = "longest time between two looks at all QEMUs"
    figures[worst] = max(seen.worst, figures.get(worst, 0))


@pytest.fixture
def cluster(machines: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """The cluster with all its machines and the VM on one of them; it is watched."""
    machines.settle(VM)
    watched: Cluster = request.getfixturevalue("watched")
    return watched


@pytest.fixture
def holder(cluster: Cluster) -> Life:
    """The QEMU that runs the VM."""
    return cluster.runs(VM)


@pytest.fixture
def other_vm(cluster: Cluster) -> Iterator[str]:
    """A VM that is in all machines and not in the CIB."""
    vm = "leaf0"
    try:
        cluster.make(vm)
        yield vm
    finally:
        cluster.remove(vm)


def others(*nodes: str) -> list[str]:
    return [node for node in NODES if node not in nodes]


# -- The bounds --


def test_a_cluster_that_starts_runs_its_vm(watched: Cluster, figures: dict[str, float]) -> None:
    begin = time.monotonic()
    watched.join(*NODES)
    life = watched.wait_runs(VM, begin, 60)
    figures["start of Pacemaker, VM runs"] = life.first_ran - begin
    assert not watched.fenced()


def test_a_vm_whose_qemu_is_killed_is_back(cluster: Cluster, holder: Life, figures: dict[str, float]) -> None:
    begin = time.monotonic()
    os.kill(holder.pid, signal.SIGKILL)
    back = cluster.wait_runs(VM, begin, 10)
    figures["QEMU killed, VM back"] = back.first_ran - begin
    assert VM in cluster.failures()
    assert not cluster.fenced()


def test_a_vm_moves_cold_by_the_word_of_an_administrator(
    cluster: Cluster, holder: Life, figures: dict[str, float]
) -> None:
    target = others(holder.node)[0]
    begin = time.monotonic()
    cluster.ask("crm_resource", "--move", "-r", VM, "-N", target)
    moved = cluster.wait_runs(VM, begin, 20, [target])
    figures["crm_resource --move, VM elsewhere"] = moved.first_ran - begin
    cluster.ask("crm_resource", "--clear", "-r", VM)
    assert "powered down" in cluster.nodes[holder.node].done("vmessctl", VM, "why")


def test_a_node_in_standby_is_drained(cluster: Cluster, holder: Life, figures: dict[str, float]) -> None:
    begin = time.monotonic()
    cluster.ask("pcs", "node", "standby", holder.node)
    moved = cluster.wait_runs(VM, begin, 20, others(holder.node))
    figures["pcs node standby, VM elsewhere"] = moved.first_ran - begin
    cluster.ask("pcs", "node", "unstandby", holder.node)
    assert not cluster.fenced()


def test_a_host_that_is_powered_off_hands_its_vm_over(
    cluster: Cluster, holder: Life, figures: dict[str, float]
) -> None:
    begin = time.monotonic()
    cluster.nodes[holder.node].power_off()
    figures["systemctl poweroff, host off"] = time.monotonic() - begin
    moved = cluster.wait_runs(VM, begin, 5, others(holder.node))
    figures["systemctl poweroff, VM elsewhere"] = moved.first_ran - begin
    assert moved.first_ran - begin < 5 * UNIT
    assert not cluster.fenced()


def test_a_node_whose_link_is_cut_is_killed_before_its_vm_runs_elsewhere(
    cluster: Cluster, holder: Life, figures: dict[str, float]
) -> None:
    begin = time.monotonic()
    cluster.cut(holder.node)
    moved = cluster.wait_runs(VM, begin, 20, others(holder.node))
    figures["link cut, VM elsewhere"] = moved.first_ran - begin
    assert cluster.fenced() == [holder.node]
    assert not cluster.nodes[holder.node].is_up()


# -- People and the cluster --


def test_people_are_refused_and_told_the_line_of_pcs(cluster: Cluster, holder: Life) -> None:
    said = cluster.nodes[holder.node].run("vmessctl", VM, "stop")
    line = f"pcs resource disable {VM}"
    assert said.returncode == 7
    assert said.stderr.splitlines()[-1].strip().startswith(f"hint: {line}")
    assert cluster.runs(VM).pid == holder.pid
    cluster.ask(*line.split())
    cluster.wait_ended(VM)
    begin = time.monotonic()
    cluster.ask("pcs", "resource", "enable", VM)
    cluster.wait_runs(VM, begin, 20)


def test_a_second_node_does_not_start_it(cluster: Cluster, holder: Life) -> None:
    other = cluster.nodes[others(holder.node)[0]]
    before = len(cluster.lives(VM))
    assert other.run("vmessctl", VM, "start").returncode == 7
    assert len(cluster.lives(VM)) == before
    cluster.may_meet = True  # a second QEMU begins, and does not get as far as its guest
    said = other.run("vmessctl", VM, "start", env=AS_PACEMAKER)
    assert said.returncode == 1
    assert 'Failed to get "write" lock' in said.stderr
    assert cluster.runs(VM).pid == holder.pid


def test_without_its_daemon_a_vm_goes_on(cluster: Cluster, holder: Life) -> None:
    node = cluster.nodes[holder.node]
    node.systemctl("stop", "vmessd")
    assert cluster.monitor_by_hand(node, VM)[0] == 0
    time.sleep(MONITOR + 1)  # nothing is to happen
    assert cluster.runs(VM).pid == holder.pid
    assert VM not in cluster.failures()
    node.systemctl("start", "vmessd")
    assert f"PID: {node.qemus()[VM]}" in node.done("vmess", VM, "status")


def test_a_vm_that_is_locked_moves(cluster: Cluster, holder: Life) -> None:
    node = cluster.nodes[holder.node]
    node.done("vmessctl", VM, "lock", "do not touch")
    try:
        begin = time.monotonic()
        cluster.ask("pcs", "node", "standby", holder.node)
        cluster.wait_runs(VM, begin, 20, others(holder.node))
    finally:
        cluster.ask("pcs", "node", "unstandby", holder.node)
        node.done("vmessctl", VM, "unlock")
    assert not cluster.fenced()


# -- The agent --


def test_ocf_tester_passes(cluster: Cluster, other_vm: str) -> None:
    said = cluster.ask("ocf-tester", "-n", other_vm, "-o", f"name={other_vm}", AGENT)
    assert said.splitlines()[-1] == f"{AGENT} passed all tests"


@pytest.mark.parametrize("shell", ["pcs", "crmsh"])
def test_the_lines_that_cluster_prints_are_accepted(
    cluster: Cluster, other_vm: str, shell: str, figures: dict[str, float]
) -> None:
    lines = cluster.ask("vmessctl", other_vm, "cluster", shell)
    begin = time.monotonic()
    said = cluster.any().run("sh", "-e", "-c", lines)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    life = cluster.wait_runs(other_vm, begin, 20)
    figures[f"lines for {shell}, VM runs"] = life.first_ran - begin
    begin = time.monotonic()
    os.kill(life.pid, signal.SIGKILL)
    back = cluster.wait_runs(other_vm, begin, 10)
    figures[f"QEMU of a VM by the lines for {shell} killed, VM back"] = back.first_ran - begin


def test_nodes_that_would_start_it_by_themselves_are_left_out(cluster: Cluster, other_vm: str) -> None:
    masters = {"n1": "AUTOSTART", "n2": "RESTART", "n3": "AUTOSTART"}
    files = {node: cluster.nodes[node].path(ROOT / other_vm / file) for node, file in masters.items()}
    for file in files.values():
        file.write_text("on\n" if file.name == "AUTOSTART" else "always\n")
    cluster.create(other_vm)
    for node, name in masters.items():
        refused = (
            f"{other_vm} start on {node} returned 'not installed' (VM {other_vm}: {name} and a cluster must"
        )
        cluster.wait_failure(refused)
    assert not [life for life in cluster.lives(other_vm) if not life.ended]
    files["n3"].unlink()
    begin = time.monotonic()
    cluster.ask("pcs", "resource", "cleanup", other_vm)
    cluster.wait_runs(other_vm, begin, 20, ["n3"])


def test_a_frozen_qemu_is_replaced_within_the_time_of_a_stop(
    cluster: Cluster, other_vm: str, figures: dict[str, float]
) -> None:
    begin = time.monotonic()
    cluster.create(other_vm, "unresponsive=restart", stop=15)
    frozen = cluster.wait_runs(other_vm, begin, 20)
    begin = time.monotonic()
    os.kill(frozen.pid, signal.SIGSTOP)
    back = cluster.wait_runs(other_vm, begin, 40)
    figures["QEMU frozen, VM back (a stop may take 15 s)"] = back.first_ran - begin
    assert not cluster.fenced()


def test_a_guest_that_stands_still_after_an_error_is_reported(cluster: Cluster) -> None:
    vm, ballast = "full0", SMALL / "ballast"
    try:
        cluster.make(vm, "filler", size=guests.FILLED, place=SMALL)
        cluster.ask("dd", "if=/dev/zero", f"of={ballast}", "bs=1M", "count=1")
        begin = time.monotonic()
        cluster.create(vm)
        life = cluster.wait_runs(vm, begin, 20)
        node = cluster.nodes[life.node]
        wait_for(lambda: cluster.monitor_by_hand(node, vm)[0] == DEGRADED, 20, "the report")
        assert "is paused after an error" in cluster.monitor_by_hand(node, vm)[1]
        cluster.wait_failure(f"'OCF_DEGRADED' ({vm} is paused after an error)")
        assert cluster.runs(vm).pid == life.pid
        cluster.ask("rm", ballast)
        wait_for(lambda: cluster.monitor_by_hand(node, vm)[0] == 0, 20, "the end of the error")
        assert cluster.runs(vm).pid == life.pid
        assert not cluster.fenced()
    finally:
        cluster.ask("rm", "-f", ballast)
        cluster.remove(vm)


# -- The how-to text --


def of_the_book(vm: str) -> dict[str, list[str]]:
    """Return the commands that docs/howto/cluster.md gives for a VM, by what they are for."""
    text = (CHECKOUT / "docs" / "howto" / "cluster.md").read_text()
    text = re.sub(r"\bnewvm(?=0?\b)0?", vm, text)
    table = re.findall(r"^\| ([a-z][a-z -]+) \| (.*`.*) \|$", text, re.MULTILINE)
    drbd = text[text.index("For DRBD,") : text.index("## Who decides")]
    book = {what: re.findall("`([^`]+)`", line) for what, line in [*table, ("drbd", drbd)]}
    by_hand = text[text.index("manage the VM:\n\n") :].split("\n\n")[1]
    return {**book, "move by hand": [line.strip() for line in by_hand.splitlines()]}


def test_what_the_book_says_to_people_works(cluster: Cluster, other_vm: str) -> None:
    book, every = of_the_book(other_vm), list(cluster.nodes.values())
    begin = time.monotonic()
    cluster.any().sh(cluster.ask("vmessctl", other_vm, "cluster"))
    first = cluster.wait_runs(other_vm, begin, 20)

    [move], begin = book["move it"], time.monotonic()
    target = others(first.node)[0]
    cluster.any().sh(move.replace("NODE", target))
    cluster.wait_runs(other_vm, begin, 20, [target])

    [cycle], begin = book["power-cycle it"], time.monotonic()
    cluster.any().sh(cycle)
    cluster.wait_runs(other_vm, begin, 20)

    (change, again), begin = book["change a setting"], time.monotonic()
    for node in every:
        node.sh(change.replace("4G", "24M"))
    cluster.any().sh(again)
    assert "-m 24M" in cluster.nodes[cluster.wait_runs(other_vm, begin, 20).node].sh(f"vmess {other_vm} info")

    leave, act, back = book["work on it undisturbed"]
    cluster.any().sh(leave)
    holder = cluster.nodes[cluster.runs(other_vm).node]
    holder.sh(act.replace("...", f"{other_vm} stop force"))
    time.sleep(2 * MONITOR)  # nothing is to start it
    assert not [life for life in cluster.lives(other_vm) if not life.ended]
    begin = time.monotonic()
    holder.sh(act.replace("...", f"{other_vm} start"))
    mine = cluster.wait_runs(other_vm, begin, 20)
    cluster.any().sh(back)
    time.sleep(2 * MONITOR)
    assert cluster.runs(other_vm).pid == mine.pid

    disable, enable = book["start or stop it"][::-1]
    cluster.any().sh(disable)
    cluster.wait_ended(other_vm)
    begin = time.monotonic()
    cluster.any().sh(enable)
    cluster.wait_runs(other_vm, begin, 20)

    out, off = book["take it out"]
    cluster.any().sh(out)
    cluster.wait_ended(other_vm)
    for node in every:
        node.sh(off)
    assert every[0].run("vmessctl", other_vm, "start").returncode == 0
    every[0].done("vmessctl", other_vm, "stop", "force")
    assert not cluster.fenced()


@pytest.mark.parametrize("shell", ["pcs", "crmsh"])
def test_a_vm_follows_its_storage(cluster: Cluster, other_vm: str, shell: str) -> None:
    storage = "STORAGE-clone"
    try:
        cluster.ask("pcs", "resource", "create", "STORAGE", "ocf:pacemaker:Dummy", "clone")
        lines = cluster.ask("vmessctl", other_vm, "cluster", shell)
        begin = time.monotonic()
        cluster.any().sh(re.sub("^# (pcs|crm) ", r"\1 ", lines, flags=re.MULTILINE))
        cluster.wait_runs(other_vm, begin, 20)
        cluster.ask("pcs", "resource", "disable", storage)
        cluster.wait_ended(other_vm)
        begin = time.monotonic()
        cluster.ask("pcs", "resource", "enable", storage)
        cluster.wait_runs(other_vm, begin, 20)
    finally:
        cluster.any().run("pcs", "resource", "delete", storage, "--force")


def test_a_vm_follows_the_promoted_instance(cluster: Cluster, other_vm: str) -> None:
    storage = f"{other_vm}-drbd"
    try:
        cluster.ask("pcs", "resource", "create", storage, "ocf:pacemaker:Stateful", "promotable")
        cluster.create(other_vm, more="--disabled")
        for line in of_the_book(other_vm)["drbd"]:
            cluster.any().sh(line)
        begin = time.monotonic()
        cluster.ask("pcs", "resource", "enable", other_vm)
        first = cluster.wait_runs(other_vm, begin, 20)
        begin = time.monotonic()
        cluster.ask("pcs", "node", "standby", first.node)
        second = cluster.wait_runs(other_vm, begin, 20, others(first.node))
        shown = cluster.ask("crm_mon", "-1", "-r")
        assert f"Promoted: [ {second.node} ]" in shown
    finally:
        cluster.ask("pcs", "node", "unstandby", "--all")
        cluster.any().run("pcs", "resource", "delete", f"{storage}-clone", "--force")


# -- Live moves --


def test_a_guest_goes_on_where_pacemaker_moves_it(cluster: Cluster, figures: dict[str, float]) -> None:
    vm = "spine0"
    try:
        cluster.make(vm)
        cluster.create(vm, more="meta allow-migrate=true --disabled")
        cluster.ask("pcs", "constraint", "location", vm, "prefers", "n1=50")
        begin = time.monotonic()
        cluster.ask("pcs", "resource", "enable", vm)
        source = cluster.wait_runs(vm, begin, 20, ["n1"])
        cluster.may_meet = True
        begin = time.monotonic()
        cluster.ask("crm_resource", "--move", "-r", vm, "-N", "n2")
        target = cluster.wait_runs(vm, begin, 20, ["n2"])
        cluster.wait_idle()
        figures["live move, from the command to the guest elsewhere"] = target.first_ran - begin
        [source] = [life for life in cluster.lives(vm) if life.pid == source.pid]
        figures["live move, between the dots of the guest"] = target.first_ran - source.last_ran
        assert "R" not in cluster.nodes["n2"].serial(vm), "it did not start again"
        assert vm not in cluster.failures()
        assert cluster.runs(vm).pid == target.pid
        for name in ("n1", "n2"):
            assert not cluster.nodes[name].path(ROOT / vm / "move.json").exists()
        begin = time.monotonic()
        cluster.ask("crm_resource", "--move", "-r", vm, "-N", "n1")
        back = cluster.wait_runs(vm, begin, 20, ["n1"])
        cluster.wait_idle()
        assert cluster.nodes["n1"].serial(vm).count("R") <= 1, "it did not start again there"
        assert cluster.runs(vm).pid == back.pid
        assert vm not in cluster.failures()
        assert not cluster.fenced()
    finally:
        cluster.remove(vm)


def test_a_guest_that_was_moved_by_hand_is_found_where_it_is(cluster: Cluster) -> None:
    vm = "spine0"
    try:
        cluster.make(vm)
        begin = time.monotonic()
        cluster.any().sh(cluster.ask("vmessctl", vm, "cluster"))
        source = cluster.wait_runs(vm, begin, 20)
        target = others(source.node)[0]
        cluster.may_meet = True
        begin = time.monotonic()
        for line in of_the_book(vm)["move by hand"]:
            cluster.nodes[source.node].sh(line.replace("NODE", target))
        there = cluster.wait_runs(vm, begin, 20, [target])
        cluster.wait_idle()
        time.sleep(2 * MONITOR)
        assert cluster.runs(vm).pid == there.pid
        assert "R" not in cluster.nodes[target].serial(vm), "it did not start again"
        assert vm not in cluster.failures()
        assert not cluster.fenced()
    finally:
        cluster.remove(vm)
