"""Timing, commands, and printed results."""

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a function call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def quietly(*command: object, env: Mapping[str, str] | None = None) -> None:
    """Run a command; exit with its error output if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, env=env)
    if done.returncode:
        raise SystemExit(failure(words, done.returncode, done.stderr))


def show(what: str, figures: list[float], against: list[float] | None = None) -> None:
    """Print the median, minimum and maximum of durations, and the ratio to others."""
    ratio = f"  {statistics.median(figures) / statistics.median(against):5.2f} x" if against else ""
    spread = f"({min(figures) * 1000:.1f} to {max(figures) * 1000:.1f})" if len(figures) > 1 else ""
    print(f"  {what:<52} {statistics.median(figures) * 1000:8.1f} ms {spread:<20}{ratio}", flush=True)


def together(commands: list[list[str]], env: Mapping[str, str] | None = None) -> None:
    """Run several commands in parallel, and wait for all."""
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
        for command in commands
    ]
    errors = [process.communicate()[1] for process in processes]
    for command, process, said in zip(commands, processes, errors, strict=True):
        if process.returncode:
            raise SystemExit(failure(command, process.returncode, said))


def failure(command: list[str], status: int, said: bytes) -> str:
    """Return the message for a failed command, with its error output if there is any."""
    words = said.decode(errors="replace").strip() or f"exit status {status}"
    return f"bench: {' '.join(command)}: {words}"


def spread(figures: list[float]) -> dict[str, float]:
    """Return the median and the quartiles of durations, in milliseconds."""
    quartiles = statistics.quantiles(figures, n=4, method="inclusive") if len(figures) > 1 else figures * 3
    names = ("lower_quartile", "median", "upper_quartile")
    return {name: round(value * 1000, 2) for name, value in zip(names, quartiles, strict=True)}


def in_words(figure: dict[str, float] | None) -> str:
    """Return the text of a table cell."""
    if figure is None:
        return "-"
    return f"{figure['median']:.1f} ({figure['lower_quartile']:.1f} to {figure['upper_quartile']:.1f})"
