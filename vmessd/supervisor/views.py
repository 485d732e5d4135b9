"""How several VMs are, told one after the other for one call, with one look at the kernel's links for all.

What is wrong with one of them is told of that one, and keeps nobody from the others.
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from vmessd.core.errors import Failed, VmessError, quoted, reason
from vmessd.core.models.views import Aspect, Refusal, VMView
from vmessd.core.models.vms import Explanation, VMStatus
from vmessd.supervisor.details import Details
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.why import explain

TOGETHER = 32
"""VMs that are looked at before the first of them was told; a slow one holds up those behind these."""


class Begin(Protocol):
    """What begins work that goes on beside, such as asyncio.create_task."""

    def __call__(self, work: Coroutine[Any, Any, VMView], /) -> asyncio.Task[VMView]:
        """Return the task."""


async def views(
    supervisor: Supervisor, vms: Sequence[str], aspect: Aspect, begin: Begin
) -> AsyncIterator[VMView]:
    """Yield a view of each VM, in this order; `begin` has them made, some at a time."""
    ask = await _asker(supervisor, vms, aspect)
    ahead: collections.deque[asyncio.Task[VMView]] = collections.deque()
    try:
        for vm in vms:
            ahead.append(begin(_view(vm, aspect, ask)))
            if len(ahead) == TOGETHER:
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()


async def _view(vm: str, aspect: Aspect, ask: Callable[[str], Awaitable[Any]]) -> VMView:
    try:
        return VMView(vm, **{aspect.value: await ask(vm)})
    except VmessError as error:
        return VMView(vm, Refusal.of(error))
    except OSError as error:
        return VMView(vm, Refusal.of(Failed(f"VM {quoted(vm)} cannot be looked at: {reason(error)}")))


async def _asker(supervisor: Supervisor, vms: Sequence[str], aspect: Aspect) -> Callable[[str], Awaitable[Any]]:
    """Look at what all VMs share, and return what tells of one of them; raises VmessError where asked."""
    if aspect is Aspect.status:

        async def status(vm: str) -> VMStatus:
            return (await supervisor.machine(vm)).status()

        return status
    if aspect is Aspect.why:

        async def why(vm: str) -> Explanation:
            return await explain(await supervisor.machine(vm))

        return why
    details = Details(supervisor)
    wirings = await details.wirings(vms)
    if aspect is Aspect.info:
        return lambda vm: details.info(vm, wirings.get(vm))
    if aspect is Aspect.nics:
        return lambda vm: details.nics(vm, wirings.get(vm))
    tables = await details.tables()
    return lambda vm: details.addresses(vm, wirings.get(vm), tables)
