"""What is asked of a kernel that cannot redirect frames."""

import errno
from collections.abc import Iterable

import pytest

from vmessd.core.errors import Failed
from vmessd.network import cables
from vmessd.network.netlink_requests import Request


class Lacking:
    """A kernel without act_mirred."""

    def __init__(self, number: int) -> None:
        self.asked: list[str] = []
        self._number = number

    def do(self, requests: Iterable[Request], *, tolerate: int = 0) -> None:
        """Note what is asked, and refuse filters."""
        for request in requests:
            self.asked.append(request.verb)
            if request.verb == "add filter" and self._number != tolerate:
                raise OSError(self._number, "Failed to load TC action module")


def test_a_kernel_that_cannot_redirect_says_so_and_nothing_is_left() -> None:
    kernel = Lacking(errno.ENOENT)
    with pytest.raises(Failed, match="this kernel has no u32 or mirred"):
        cables.redirect(kernel, {5: 6, 6: 5})  # type: ignore[arg-type]
    assert kernel.asked == ["del qdisc"] * 2 + ["add qdisc", "add filter"] + ["del qdisc"] * 2


def test_other_errors_are_the_kernels() -> None:
    kernel = Lacking(errno.ENOMEM)
    with pytest.raises(OSError, match="TC action"):
        cables.redirect(kernel, {5: 6})  # type: ignore[arg-type]
    assert kernel.asked[-1] == "del qdisc"
