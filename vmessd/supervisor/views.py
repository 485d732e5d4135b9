"""Views of several VMs for one call, one after the other, with one look at the links of the kernel for all.

An error of one VM is part of its view and does not affect the others.
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from vmessd.core.errors import Failed, VmessError, quoted, reason
from vmessd.core.models.views import Aspect, Refusal, VMView
from vmessd.supervisor.details import Details
from vmessd.supervisor.registry import Supervisor

TOGETHER = 32
"""Number of VMs that are looked at concurrently. A slow VM delays those after these."""


class Begin(Protocol):
    """A function that starts a task, such as asyncio.create_task."""

    def __call__(self, work: Coroutine[Any, Any, VMView], /) -> asyncio.Task[VMView]:
        """Return the task."""


async def views(
    supervisor: Supervisor, vms: Sequence[str], aspect: Aspect, begin: Begin
) -> AsyncIterator[VMView]:
    """Yield a view of each VM, in this order; `begin` starts the tasks that make them."""
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
    """Look at what all VMs share, and return a function that gives the view of one; it raises VmessError."""
    if aspect is Aspect.status:
        return supervisor.condition.status
    if aspect is Aspect.why:
        return supervisor.condition.explain
    details = Details(supervisor)
    wirings = await details.wirings(vms)
    if aspect is Aspect.info:
        return lambda vm: details.info(vm, wirings.get(vm))
    if aspect is Aspect.nics:
        return lambda vm: details.nics(vm, wirings.get(vm))
    tables = await details.tables()
    return lambda vm: details.addresses(vm, wirings.get(vm), tables)
