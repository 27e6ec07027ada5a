"""Writing files: whole or not at all, one program at a time, and what stops a run."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snnp.errors import InputError
from snnp.files import hold, refuse_inputs, replacing, scratch_folder, why_full, write_atomically
from snnp.process import stop_requests


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """A full disk: files cannot grow beyond some bytes (Python ignores the signal, so that writes fail)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_leaves_the_old_one_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    write_atomically(path, b"old")
    with largest_file(1000), pytest.raises(OSError) as caught:
        write_atomically(path, bytes(5000))
    assert caught.value.filename == str(path)
    assert why_full(caught.value) == "the limit on the size of files is reached"
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["model.json"]


def test_devices_are_written_and_never_replaced() -> None:
    with pytest.raises(OSError) as caught:
        write_atomically(Path("/dev/full"), b"text")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    assert why_full(caught.value) == "the disk is full"
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_what_a_dead_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    dead = tmp_path / ".partial-abcd1234-run.npz"
    dead.write_bytes(b"half")
    (tmp_path / ".partial-abcd1234-other-run.npz").write_bytes(b"of another file")
    folder = tmp_path / ".partial-x_y-commit"
    folder.mkdir()
    (folder / "file").write_bytes(b"half")
    program = """
import sys
from pathlib import Path
from snnp.files import replacing
with replacing(Path("run.npz")) as temporary:
    print(temporary.name, flush=True)
    sys.stdin.read()
"""
    living = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert living.stdout is not None
    name = living.stdout.readline().strip()
    dead.write_bytes(b"half")  # the one above has swept it
    write_atomically(tmp_path / "run.npz", b"whole")
    with scratch_folder(tmp_path, "commit"):
        pass
    assert {each.name for each in tmp_path.iterdir()} == {name, ".partial-abcd1234-other-run.npz", "run.npz"}
    living.kill()
    living.communicate()


def test_a_file_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from snnp.files import hold
with hold([Path("run.csv")]):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(InputError, match=rf"run.csv' is being written by another run \(process {holder.pid} on "):
        hold([tmp_path / "run.csv"]).__enter__()
    holder.kill()
    holder.communicate()
    assert (tmp_path / ".run.csv.lock").exists()  # which means nothing
    with hold([tmp_path / "run.csv"]), pytest.raises(InputError, match="another run"), hold([tmp_path / "run.csv"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_known_under_every_name(tmp_path: Path) -> None:
    (tmp_path / "start.xyz").write_text("1\n\nH 0 0 0\n")
    (tmp_path / "link.xyz").symlink_to(tmp_path / "start.xyz")
    os.link(tmp_path / "start.xyz", tmp_path / "hard.xyz")
    for name in ("start.xyz", "link.xyz", "hard.xyz"):
        with pytest.raises(InputError, match=rf"{name}' is the file that is read; choose another file"):
            refuse_inputs(tmp_path / name, [tmp_path / "start.xyz"])
    refuse_inputs(tmp_path / "new.xyz", [tmp_path / "start.xyz"])


def test_a_name_of_any_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 120 + ".txt")
    with hold([path]), replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("text")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_does_what_it_did_before(signum: signal.Signals) -> None:
    def before(number: int, frame: object) -> None:
        raise InterruptedError(number)

    kept = signal.signal(signum, before)
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signum)
            assert request.signum == signum
            assert not request.overdue(60.0)
            with pytest.raises(InterruptedError):
                os.kill(os.getpid(), signum)
        assert signal.getsignal(signum) is before
        signal.signal(signum, signal.SIG_IGN)
        with stop_requests() as request:
            os.kill(os.getpid(), signum)
            assert request.signum is None
    finally:
        signal.signal(signum, kept)


def test_other_threads_leave_signals_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with stop_requests() as request:
            seen.append(request.signum)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
    assert signal.getsignal(signal.SIGTERM) is before
