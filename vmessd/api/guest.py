"""Actions on a running guest: suspend, resume, reset, keys, screenshots."""

from asyncvarlink import FileDescriptor, varlinkmethod

from vmessd.api.caller import Caller


class Guest(Caller):
    """Methods that act on a running guest."""

    @varlinkmethod
    async def Suspend(self, *, vm: str) -> None:
        """Pause a guest."""
        await (await self._supervisor.controls(vm)).suspend()

    @varlinkmethod
    async def Resume(self, *, vm: str) -> None:
        """Let a paused guest continue."""
        await (await self._supervisor.controls(vm)).resume()

    @varlinkmethod
    async def Reset(self, *, vm: str) -> None:
        """Push the reset button."""
        await (await self._supervisor.controls(vm)).reset()

    @varlinkmethod
    async def SendKeys(self, *, vm: str, keys: list[str]) -> None:
        """Press key combinations such as `ctrl-alt-delete`, one after the other, with QEMU's names of keys."""
        await (await self._supervisor.controls(vm)).press(keys)

    @varlinkmethod
    async def Type(self, *, vm: str, text: str) -> None:
        """Type a text as on a US keyboard. The text is not logged."""
        await (await self._supervisor.controls(vm)).type(text)

    @varlinkmethod(return_parameter="picture")
    async def Screenshot(self, *, vm: str) -> FileDescriptor:
        """Return a descriptor from which a PNG picture of the screen can be read."""
        return FileDescriptor(await (await self._supervisor.controls(vm)).screenshot(), should_close=True)
