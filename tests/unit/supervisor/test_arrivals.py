"""What comes from another host, without a second host."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from vmessd.core.errors import Failed
from vmessd.supervisor.arrivals import Receipt
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host

GRACE_PERIOD = 86400.0


def test_a_source_that_powers_a_guest_down_first_may_take_its_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(stack: contextlib.ExitStack) -> str:
        loop = asyncio.get_running_loop()
        async with (
            Supervisor(tmp_path, Host("qemu")) as supervisor,
            contextlib.aclosing(supervisor.arrivals.receive(None)) as steps,
        ):
            first = await anext(steps)
            assert first.channel is not None
            source = stack.enter_context(first.channel)
            serving: asyncio.Task[Receipt] = asyncio.ensure_future(anext(steps))
            await asyncio.sleep(0)
            now = loop.time
            monkeypatch.setattr(loop, "time", lambda: now() + GRACE_PERIOD)
            await asyncio.sleep(0.01)
            assert not serving.done()
            source.shutdown(socket.SHUT_RDWR)
            with pytest.raises(Failed) as caught:
                await serving
            return caught.value.message

    with contextlib.ExitStack() as stack:
        assert asyncio.run(talk(stack)) == "the other host: the connection ended"
