"""A real daemon, real clients and real QEMU for the tests; whatever a test starts, it ends.

`daemon` is a `vmessd` process with a VM root of its own, ready by sd_notify(3). Guests are the ROMs of
`guests.py` (up in tens of milliseconds under TCG) or the fake QEMU of `fakeqemu.py`. `wired` is a daemon
in a network namespace of its own, so that no link of the machine is touched.
"""

import contextlib
import gc
import os
import posix
import random
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

SUPPORT = Path(__file__).with_name("support")
pytest.register_assert_rewrite(*(file.stem for file in SUPPORT.glob("*.py")))  # before they are imported

from daemons import FAKE, STARTERS, UNIT, Daemon, Namespace, WiredDaemon, need_wires  # noqa: E402

# A test that draws values may take long beside others.
settings.register_profile("shared processors", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared processors")

pytest_plugins = ("booted", "hostile", "labs")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `contrib/check` takes besides pytest's own options."""
    parser.addoption("--long", action="store_true", help="run the long tests, too")
    parser.addoption("--redraw", action="store_true", help="write the screens of tests/daemon/screens again")
    parser.addoption("--seed", type=int, metavar="N", help="of the long tests that draw lots; else a new one")


@pytest.hookimpl(tryfirst=True)  # pytest-timeout reads its option in this hook, too
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed of this run where none is given; have programs compiled once, not at each start."""
    if UNIT != 1 and config.option.timeout is None:
        config.option.timeout = float(config.getini("timeout")) * UNIT
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["VMESS_NO_DAEMON"] = "1"  # a client that is lost must not start a daemon of ours
    posix.environ[b"VMESS_NO_DAEMON"] = b"1"
    Daemon.forks = not config.option.long
    if config.option.seed is None:
        drawn = getattr(config, "workerinput", {}).get("seed")
        config.option.seed = random.SystemRandom().randrange(2**31) if drawn is None else drawn


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give each worker of pytest-xdist the seed of this run."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a long text by its length: all workers send all names of tests."""
    return f"{argname} of {len(val)}" if isinstance(val, (str, bytes)) and len(val) > 200 else None


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run."""
    number: int = request.config.option.seed
    return number


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether the long tests run, too: then what is repeated is repeated more often."""
    wanted: bool = request.config.option.long
    return wanted


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say what makes the lots be drawn once more; workers have no reporter."""
    option, reporter = session.config.option, session.config.pluginmanager.get_plugin("terminalreporter")
    if option.long and reporter is not None:
        reporter.write_line(f"long tests: --seed {option.seed}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among thousands of tests, neither now, a fifth of the time, nor while they run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


LONG_TIME = 3600
"""Seconds that a test may take which repeats more with `--long`: it starts a daemon hundreds of times."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this hook, too
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long; mark what starts a daemon, so that `-m 'not qemu'` is the quick part.

    Tests in containers are for two workers, one of which has a container that they share. They come first: they
    take these workers as long as the others take for all the rest.
    """
    long = [item for item in items if item.get_closest_marker("long")]
    if long and not config.option.long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    for item in items:
        asked_for = set(getattr(item, "fixturenames", ()))
        if STARTERS & asked_for:
            item.add_marker("qemu")
        if config.option.long and "is_long" in asked_for and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONG_TIME))
        if "stage" in asked_for:
            item.add_marker(pytest.mark.xdist_group("booted" if "host" in asked_for else "machines"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


# Who starts the tests in the background of a script has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon with an empty VM root."""
    instance = Daemon(tmp_path)
    try:
        yield instance.start()
    finally:
        instance.close()


@pytest.fixture
def fake_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon whose QEMU is the fake one."""
    instance = Daemon(tmp_path)
    instance.arguments += ["--qemu", str(FAKE)]
    try:
        yield instance.start()
    finally:
        instance.close()


@pytest.fixture
def make_wired(tmp_path: Path) -> Iterator[Callable[..., WiredDaemon]]:
    """A function that returns a daemon in a fresh namespace, not started yet.

    Arguments of the function are arguments of vmessd.
    """
    need_wires()
    with contextlib.ExitStack() as stack:

        def make(*arguments: str, directory: Path = tmp_path) -> WiredDaemon:
            namespace = stack.enter_context(contextlib.closing(Namespace()))
            instance = stack.enter_context(contextlib.closing(WiredDaemon(directory, namespace)))
            instance.arguments += arguments
            return instance

        yield make


@pytest.fixture(scope="module")
def shared_wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WiredDaemon]:
    """A running daemon in a network namespace, for tests of one module that change nothing."""
    need_wires()
    with (
        contextlib.closing(Namespace()) as namespace,
        contextlib.closing(WiredDaemon(tmp_path_factory.mktemp("wired"), namespace)) as instance,
    ):
        instance.start()
        yield instance


@pytest.fixture
def wired(make_wired: Callable[..., WiredDaemon]) -> WiredDaemon:
    """A running daemon in a fresh network namespace, with an empty VM root."""
    instance = make_wired()
    instance.start()
    return instance
