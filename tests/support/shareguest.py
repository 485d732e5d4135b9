"""A real Linux guest that mounts a share: Debian's kernel, a few of its modules, and our own init."""

import re
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
WANTED = ("virtio_pci", "9pnet_virtio", "9p", "virtiofs")


def kernels(root: Path = Path("/")) -> list[Path]:
    """Return the kernels of this host that have all modules, the newest last."""
    found = sorted(root.glob("boot/vmlinuz-*"))
    return [kernel for kernel in found if all(_file(_modules(kernel), name) for name in WANTED)]


def _modules(kernel: Path) -> Path:
    return kernel.parents[1] / "lib/modules" / kernel.name.removeprefix("vmlinuz-") / "kernel"


def _file(modules: Path, name: str) -> Path | None:
    return next(modules.rglob(f"{name}.ko"), None)


def _in_order(modules: Path) -> list[Path]:
    """Return the modules that are wanted and those below them, each after what it depends on."""
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        file = _file(modules, name) or _file(modules, name.replace("_", "-"))
        if file is None or file.stem in found:  # built into the kernel
            return
        data = file.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for below in (depends[1].decode() if depends else "").split(","):
            if below:
                add(below)
        found[file.stem] = file

    for name in WANTED:
        add(name)
    return list(found.values())


def initramfs(kernel: Path, place: Path) -> Path:
    """Make the initramfs for a kernel and return its path."""
    compiler = shutil.which("cc")
    assert compiler is not None
    init = place / "init"
    subprocess.run([compiler, "-static", "-O1", "-o", init, SOURCE], check=True)
    files = {"init": init.read_bytes()}
    files |= {
        f"modules/{number:02}.ko": file.read_bytes() for number, file in enumerate(_in_order(_modules(kernel)))
    }
    made = place / "initramfs"
    archive = b"".join(_entry(name, 0o040755, b"") for name in ("dev", "proc", "modules"))
    archive += _entry("dev/console", 0o020600, b"", device=(5, 1))
    archive += b"".join(_entry(name, 0o100755, data) for name, data in files.items())
    made.write_bytes(archive + _entry("TRAILER!!!", 0, b""))
    return made


def _entry(name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    """Return an entry of an archive in the format `newc` (cpio(5))."""
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
