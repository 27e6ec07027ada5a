"""Fuzzing with a time limit: readers meet damaged and invented files, and may answer with a `SnnpError` or a result.

    python tests/fuzz/readers.py --seconds 60 [--seed 1] [--target NAME]

Anything else (another exception, a hang, memory without bound) is a crash: its files are kept in `cases/TARGET/DIGEST`
beside this module, where `tests/test_fuzz.py` replays them for good.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import mmap
import os
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

from snnp.errors import SnnpError

__all__ = ["CASES", "Files", "Target", "main", "mutate", "run", "saved", "try_files"]

CASES = Path(__file__).parent / "cases"
HANG = 20  # seconds that one input may take
BATCH = 50  # inputs in one process
MEMORY = 6 << 30  # bytes that the process may ask for beyond what it has

Files = Mapping[str, bytes]
"""Name -> content of the files of one input; names may hold folders."""

_EXTREMES = [b"0", b"-1", b"1e308", b"-1e-308", b"1e999", b"nan", b"inf", b"999999999999", b"1_000", b"0x10", b"", b" "]
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Target:
    """One reader.

    Arguments:
        name: of the target and of its folder of cases.
        check: reads what lies in a folder; may raise `SnnpError`, and AssertionError where a result is wrong.
        seeds: sound inputs, from which damaged ones are made.
        words: pieces of text that mean something to the reader.
        invent: makes an input from nothing, or None.
    """

    name: str
    check: Callable[[Path], None]
    seeds: Sequence[Files]
    words: Sequence[bytes] = ()
    invent: Callable[[Random], Files] | None = None


def mutate(random: Random, target: Target) -> Files:
    """A seed with one to five changes in one of its files."""
    files = dict(random.choice(target.seeds))
    name = random.choice(sorted(files))
    content = files[name]
    for _ in range(random.randint(1, 5)):
        content = _change(random, content, random.choice(target.seeds).get(name, b""), target.words)
    return {**files, name: content}


def _change(random: Random, content: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    first, last = sorted(random.randint(0, len(content)) for _ in range(2))
    last = min(last, first + random.choice([1, 4, 32, 1 << 20]))
    kind = random.randrange(7)
    if kind == 0 and words:
        return content[:first] + random.choice(words) + content[first:]
    if kind == 1:
        return content[:first] + content[last:]
    if kind == 2:
        return content[:last] + content[first:last] * random.choice([1, 1, 1, 50]) + content[last:]
    if kind == 3:
        return content[:first] + bytes(random.randrange(256) for _ in range(random.randint(1, 4))) + content[last:]
    if kind == 4 and (numbers := list(_NUMBER.finditer(content[:100_000]))):
        chosen = random.choice(numbers)
        return content[: chosen.start()] + random.choice(_EXTREMES) + content[chosen.end() :]
    if kind == 5 and other:
        return content[:first] + other[random.randrange(len(other)) :]
    if content:
        place = random.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]
    return random.choice(words) if words else b"\n"


def try_files(target: Target, files: Files) -> BaseException | None:
    """What a reader did wrong with an input, or None."""
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            path = Path(place) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            with _limits():
                target.check(Path(place))
        except SnnpError as error:
            return AssertionError(f"a message of several lines: {error}") if "\n" in str(error) else None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return error
    return None


@contextmanager
def _limits() -> Iterator[None]:
    """Seconds and bytes that one input may take."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {HANG} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _inputs(target: Target, seed: str) -> Iterator[Files]:
    """The inputs of a batch; the same for the same seed."""
    random = Random(seed)
    while True:
        invented = target.invent is not None and random.random() < 0.5
        yield target.invent(random) if target.invent is not None and invented else mutate(random, target)


def _kind(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__} in line {trace.tb_lineno if trace else 0}: {text}"


def _batch(target: Target, seed: str, tries: int) -> tuple[int, dict[str, int]]:
    """Try inputs in a process of its own, which a reader may kill: how many, and kind of crash -> its number."""
    progress = mmap.mmap(-1, 8)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        found: dict[str, int] = {}
        try:
            for number, files in enumerate(itertools.islice(_inputs(target, seed), tries)):
                progress[:8] = number.to_bytes(8, "little")
                if (error := try_files(target, files)) is not None:
                    found.setdefault(_kind(error), number)
            os.write(write, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or not said:
        number = int.from_bytes(progress[:8], "little")
        return number + 1, {f"the process died of signal {os.WTERMSIG(status)}": number}
    return tries, json.loads(said)


def run(target: Target, seed: int, *, tries: int | None = None, seconds: float = 60.0) -> dict[str, Files]:
    """Try inputs until the time is over, or so many; digest -> the input of each kind of crash, kept once."""
    crashes: dict[str, Files] = {}
    seen: set[str] = set()
    end, number, batch = time.monotonic() + seconds, 0, 0
    while (number < tries) if tries is not None else (time.monotonic() < end):
        done, found = _batch(target, f"{seed} {batch}", BATCH)
        number, batch = number + done, batch + 1
        for kind, place in found.items():
            if kind.partition(": ")[0] in seen:
                continue
            seen.add(kind.partition(": ")[0])
            files = next(itertools.islice(_inputs(target, f"{seed} {batch - 1}"), place, None))
            digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
            crashes[digest] = files
            print(f"{target.name}: {digest} {kind}", flush=True)
    print(f"{target.name}: {number:,} inputs, {len(crashes)} kinds of crash", flush=True)
    return crashes


def saved(target: Target) -> dict[str, Files]:
    """The cases that are kept for a target."""
    found = {}
    for folder in sorted((CASES / target.name).glob("*")):
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        found[folder.name] = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return found


def main(targets: Sequence[Target]) -> int:
    """The command line; the number of kinds of crash."""
    parser = argparse.ArgumentParser(description="Fuzz readers for some time; crashes are kept as cases.")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, shared by the targets")
    parser.add_argument("--seed", type=int, default=None, help="by default the clock")
    parser.add_argument("--target", choices=[target.name for target in targets], action="append")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    chosen = [target for target in targets if given.target is None or target.name in given.target]
    total = 0
    for target in chosen:
        seed = time.time_ns() if given.seed is None else given.seed
        crashes = run(target, seed, seconds=given.seconds / len(chosen))
        total += len(crashes)
        for digest, files in crashes.items():
            folder = CASES / target.name / digest
            shutil.rmtree(folder, ignore_errors=True)
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    return min(total, 100)
