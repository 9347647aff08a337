from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import logitloss
from command_line.commands import (
    COMMAND,
    OUTPUTS,
    assert_nothing_changed,
    assert_one_line,
    files,
    interrupt,
    parts,
    posix_only,
    save,
    save_pair,
    sparse,
)


def test_output_into_a_missing_directory(run):
    save_pair()
    result = run("labels.npy", "logits.npy", "--loss-out", "nowhere/loss.npy")
    assert_one_line(result, "nowhere/loss.npy: No such file or directory")
    result = run("labels.npy", "logits.npy", "--loss-out", "labels.npy/loss.npy")
    assert_one_line(result, "labels.npy/loss.npy: Not a directory")


def test_output_must_not_replace_a_directory(run):
    save_pair()
    Path("folder").mkdir()
    result = run("labels.npy", "logits.npy", "--loss-out", "folder")
    assert_one_line(result, "folder: not a regular file")


@posix_only
def test_output_must_not_replace_a_device(run):
    save_pair()
    # A fifo stands for /dev/null, which root would lose if this failed.
    os.mkfifo("device")
    result = run("labels.npy", "logits.npy", "--loss-out", "device")
    assert_one_line(result, "device: not a regular file")


@posix_only
def test_output_in_a_directory_without_permission(run):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    save_pair()
    Path("locked").mkdir(mode=0o500)
    result = run("labels.npy", "logits.npy", "--loss-out", "locked/loss.npy")
    assert_one_line(result, "locked/loss.npy: Permission denied")


def test_output_must_not_replace_a_read_only_file(run, monkeypatch):
    save_pair()
    save("loss.npy", np.zeros(1))
    # Root could write to it whatever its mode.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    result = run("labels.npy", "logits.npy", "--loss-out", "loss.npy")
    assert_one_line(result, "loss.npy: Permission denied")


@pytest.mark.parametrize("name", ["labels.npy", "logits.npy", "w.npy", "q.npy"])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_output_must_not_replace_an_input(run, name, link):
    save_pair((30, 4))
    save("w.npy", np.ones((30, 4)))
    save("q.npy", np.ones(4))
    output = name
    if link is not None:
        output = "alias.npy"
        link(name, output)
    before = Path(name).read_bytes()
    options = ("--weight", "w.npy", "--pos-weight", "q.npy", "--grad-out", output)
    assert_one_line(run("labels.npy", "logits.npy", *options), output, "input")
    assert Path(name).read_bytes() == before


def test_two_outputs_must_not_share_a_file(run):
    save_pair()
    result = run("labels.npy", "logits.npy", "--loss-out", "a.npy", "--grad-out", "./a.npy")
    assert_one_line(result, "a.npy", "two outputs")
    assert files() == {"labels.npy", "logits.npy"}


@posix_only
def test_output_gets_the_permissions_of_a_new_file(report):
    save_pair()
    previous = os.umask(0o027)
    try:
        report("labels.npy", "logits.npy", "--loss-out", "loss.npy")
    finally:
        os.umask(previous)
    assert os.stat("loss.npy").st_mode & 0o777 == 0o640


@posix_only
def test_output_behind_a_symbolic_link(report):
    save_pair()
    Path("elsewhere").mkdir()
    os.symlink("elsewhere/loss.npy", "link.npy")
    report("labels.npy", "logits.npy", "--loss-out", "link.npy")
    assert os.path.islink("link.npy")
    assert np.load("elsewhere/loss.npy").shape == (30, 4)


# Complete or not at all


def test_outputs_appear_when_all_is_done(small_blocks, report, monkeypatch):
    save_pair()
    compute = logitloss.value_and_grad

    def spy(*args, **kwargs):
        assert not {"loss.npy", "grad.npy"} & files()
        return compute(*args, **kwargs)

    monkeypatch.setattr(logitloss, "value_and_grad", spy)
    report("labels.npy", "logits.npy", *OUTPUTS)
    assert files() == {"labels.npy", "logits.npy", "loss.npy", "grad.npy"}


def test_ctrl_c(small_blocks, run, monkeypatch, earlier_results):
    save_pair()
    blocks = iter(range(3))
    compute = logitloss.value_and_grad

    def interrupted(*args, **kwargs):
        if next(blocks) == 2:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    monkeypatch.setattr(logitloss, "value_and_grad", interrupted)
    result = run("labels.npy", "logits.npy", *OUTPUTS)
    assert result == (130, "", "logitloss: interrupted\n")
    assert_nothing_changed(earlier_results)


def test_ctrl_c_while_an_output_is_opened(run, monkeypatch, earlier_results):
    save_pair()

    def interrupted(*args):
        open(*args).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(logitloss._command_line.files, "open", interrupted, raising=False)
    result = run("labels.npy", "logits.npy", *OUTPUTS)
    assert result == (130, "", "logitloss: interrupted\n")
    assert_nothing_changed(earlier_results)


def test_the_handler_of_sigterm_is_put_back(run):
    save_pair()
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for path in ("loss.npy", "nowhere/loss.npy"):
            run("labels.npy", "logits.npy", "--loss-out", path)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, previous)


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing_behind(number, earlier_results):
    size = 2**30
    sparse("labels.npy", "bool", (size,))
    sparse("logits.npy", "float32", (size,))
    interrupt(
        *("labels.npy", "logits.npy", *OUTPUTS),
        number=number,
        when=lambda: sum(map(os.path.getsize, parts())) >= 2**20,
    )
    assert_nothing_changed(earlier_results)


@posix_only
def test_full_disk(earlier_results):
    pytest.importorskip("resource")
    size = 2**21
    sparse("labels.npy", "bool", (size,))
    sparse("logits.npy", "float32", (size,))
    room = 6 * 2**20
    # The limit is set by the child itself: a fork with Python code in it is not safe once other
    # libraries have started threads.
    limited = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
runpy.run_module("logitloss", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", limited, "labels.npy", "logits.npy", *OUTPUTS],
        capture_output=True,
        text=True,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), "grad.npy: File too large")
    assert_nothing_changed(earlier_results)


def test_disk_that_fills_at_the_last_moment(run, monkeypatch, earlier_results):
    save_pair()
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    result = run("labels.npy", "logits.npy", *OUTPUTS)
    assert_one_line(result, "grad.npy: No space left on device")
    assert_nothing_changed(earlier_results)


@posix_only
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_reader_that_has_gone(arguments):
    save_pair()
    reader, writer = os.pipe()
    os.close(reader)
    # What is buffered would be flushed again at exit.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*COMMAND, "labels.npy", "logits.npy", *arguments],
        env=buffered,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert_one_line((done.returncode, "", done.stderr), "standard output: Broken pipe")


@posix_only
def test_ctrl_c_while_a_table_is_read(earlier_results):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    with open("table.csv", "wb") as file:
        file.write(b"z,x\n")
        for _ in range(200):
            file.write(b"1,0.5\n" * 100_000)
    interrupt("table.csv:z", "table.csv:x", *OUTPUTS, number=signal.SIGINT, when=parts)
    assert files() == {"table.csv", *earlier_results}
