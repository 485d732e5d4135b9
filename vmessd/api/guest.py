"""What a person does to a guest that runs."""

from asyncvarlink import FileDescriptor, varlinkmethod

from vmessd.api.caller import Caller


class Guest(Caller):
    """Methods that act on a guest that runs."""

    @varlinkmethod
    async def Suspend(self, *, vm: str) -> None:
        """Have a guest stand still."""
        await (await self._supervisor.controls(vm)).suspend()

    @varlinkmethod
    async def Resume(self, *, vm: str) -> None:
        """Let a guest run on."""
        await (await self._supervisor.controls(vm)).resume()

    @varlinkmethod
    async def Reset(self, *, vm: str) -> None:
        """Push the reset button."""
        await (await self._supervisor.controls(vm)).reset()

    @varlinkmethod
    async def SendKeys(self, *, vm: str, keys: list[str]) -> None:
        """Press combinations of keys such as `ctrl-alt-delete`, one after the other; named as QEMU does."""
        await (await self._supervisor.controls(vm)).press(keys)

    @varlinkmethod
    async def Type(self, *, vm: str, text: str) -> None:
        """Type a text as on a US keyboard. What it says is not logged."""
        await (await self._supervisor.controls(vm)).type(text)

    @varlinkmethod(return_parameter="picture")
    async def Screenshot(self, *, vm: str) -> FileDescriptor:
        """Return a descriptor to read a PNG picture of the screen from."""
        return FileDescriptor(await (await self._supervisor.controls(vm)).screenshot(), should_close=True)
