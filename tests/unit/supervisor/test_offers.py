"""Offers of VMs by other hosts."""

from pathlib import Path

import pytest

from vmessd.core import moves
from vmessd.core.errors import Failed
from vmessd.core.moves import Ask, Offer
from vmessd.supervisor.offers import check_host
from vmessd.vm.host import Host


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/nonexistent/vmlinuz", "/nonexistent/vmlinuz"),
        ("/nonexistent/my kernel; reboot", "'/nonexistent/my kernel; reboot'"),
        ("/nonexistent/\x1b[2J\nx", r"$'/nonexistent/\x1b[2J\nx'"),
    ],
)
def test_the_hint_for_a_missing_file_can_be_typed_whatever_its_path(
    tmp_path: Path, path: str, shown: str
) -> None:
    offer = Offer(moves.VERSION, Ask.take, "k", "leaf0", "lab2", needs=[path])
    with pytest.raises(Failed, match="is not on this host") as caught:
        check_host(offer, tmp_path, Host(qemu="qemu-system-x86_64", accel="tcg"))
    assert caught.value.hint == f"copy it here: scp -- {shown} ..."
