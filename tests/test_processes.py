"""One grid in several processes: workers of a command (--jobs), several commands, and processes that die or are stopped."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe

import psutil
import pytest
from filelock import FileLock
from grids import TEXTS, command, perform, planned
from rich.console import Console

from lora_drop.cli import app as cli
from lora_drop.cli.engines import part_of
from lora_drop.cli.grid_progress import ConsoleGridReporter
from lora_drop.errors import UserError
from lora_drop.experiments import engine
from lora_drop.experiments.engines import local
from lora_drop.experiments.engines.local import InProcess
from lora_drop.experiments.one_run import perform_run, run_directory
from lora_drop.experiments.records import read_records
from lora_drop.files import read_json, write_json
from lora_drop.progress import GridReporter, Relay, Reporter
from lora_drop.runs import locks
from lora_drop.runs.locks import Busy, Owner, hold, is_held

slow = pytest.mark.slow
posix = pytest.mark.skipif(os.name == "nt", reason="processes are not stopped on Windows")
HOLDER = """
import sys, time
from pathlib import Path
from lora_drop.runs.locks import hold
with hold(Path(sys.argv[1]), ""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a lock until its input ends."""
    started = []

    def start(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-c", HOLDER, str(lock)]
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"held\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@posix
def test_the_process_that_holds_a_lock_is_known_and_its_state(holder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    lock = tmp_path / "lock"
    assert not is_held(lock) and locks.owner(lock) is None
    process = holder(lock)
    with pytest.raises(Busy, match=rf"^Wait \(process {process.pid} on ") as caught, hold(lock, "Wait"):
        pass
    assert caught.value.lock == lock and is_held(lock)
    owner = locks.owner(lock)
    assert owner.pid == process.pid and owner.state == "running"
    process.send_signal(signal.SIGSTOP)
    until(lambda: owner.state == "stopped")
    assert owner._replace(host="another").state == "elsewhere"
    assert owner._replace(started=0.0).state == "dead"  # the number was given to another process
    process.kill()
    process.wait()
    assert owner.state == "dead" and not is_held(lock)
    monkeypatch.setattr(locks, "FileLock", refuse)
    assert not is_held(lock)
    monkeypatch.undo()
    with hold(lock, "Wait"):
        assert locks.owner(lock).pid == os.getpid()
        monkeypatch.setattr(locks, "FileLock", refuse)  # that of another user: its holder decides
        assert is_held(lock)
        monkeypatch.undo()
    assert locks.owner(lock) is None


@posix
@slow
def test_a_run_that_a_stopped_process_holds_is_named_and_the_others_are_done(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "NAMED_AFTER_S", 1.0)
    monkeypatch.setattr(engine, "POLL_S", 0.1)
    held, other = planned("table1", rows=["lora", "tied_lora"])
    process = holder(run_directory(held, tmp_path / "runs") / ".lock")
    process.send_signal(signal.SIGSTOP)
    outcome = perform(tmp_path, [held, other])
    assert outcome.performed == [other.name] and not outcome.failed
    assert f"process {process.pid} on " in outcome.busy[held.name] and "is stopped" in outcome.busy[held.name]
    assert f"kill -CONT {process.pid}" in outcome.busy[held.name]


@slow
def test_a_run_that_another_process_holds_is_waited_for(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "NAMED_AFTER_S", 0.5)
    monkeypatch.setattr(engine, "POLL_S", 0.1)
    (run,) = planned("table1", rows=["lora"])
    process = holder(run_directory(run, tmp_path / "runs") / ".lock")
    told = []

    class Told(GridReporter):
        def notice(self, text):
            told.append(text)
            if "is working on it" in text:
                process.communicate()  # it ends

    outcome = engine.perform_grid([run], engine.Results(tmp_path / "results"), Told(), InProcess(tmp_path / "runs"))
    assert outcome.performed == [run.name] and not outcome.busy
    assert any(f"{run.name} waits: process {process.pid} on " in text for text in told)


def test_shards_are_the_grid():
    grid = planned("table1", tasks=["rte", "cola"])
    parts = [part_of(grid, f"{number}/4") for number in (1, 2, 3, 4)]
    assert [len(part) for part in parts] == [4, 4, 3, 3]
    assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in grid)
    assert part_of(grid, None) == grid and part_of(grid, "15/15") == []
    for wrong in ("0/4", "5/4", "1/0", "1", "a/b", "1/4/2"):
        with pytest.raises(UserError, match="1/8, 2/8"):
            part_of(grid, wrong)


def test_workers_share_devices_and_threads(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    workers = local.Processes(3, None, None).workers
    assert [(worker.device, worker.threads) for worker in workers] == [("5", 2), ("7", 2), ("5", 2)]
    with local._environment("7", 2):
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]) == ("7", "2")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"


def test_a_terminal_shows_every_run_under_way():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200, color_system=None)
    with ConsoleGridReporter(console) as grid:
        grid.doing("starting torch and transformers")  # in a bar of other columns
        one, two = (grid.begin(name, number, 12) for number, name in enumerate(("lora-rte", "full-rte"), 1))
        one.at("GPU 0")
        two.at("node b")
        one.start("train")
        one.advance(4, 8, "epoch 1/2, best 0.7123")
        grid.bar.refresh()
        shown = " ".join(text.getvalue().split())
        assert "1/12 lora-rte GPU 0 train" in shown and "4/8 epoch 1/2, best 0.7123" in shown
        assert "2/12 full-rte node b begins" in shown
        grid.wait("full-rte", "another process is working on it")
        assert [task.fields["label"] for task in grid.bar.tasks] == [" 1/12  lora-rte"]
        grid.end("lora-rte", "accuracy 0.7")
        assert grid.bar is None and " s  GPU 0  accuracy 0.7\n" in text.getvalue()
        grid.end("vera-rte", "on no node yet: it failed")
    assert "vera-rte  not begun  on no node yet: it failed" in text.getvalue()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two thresholds on toy data, which share a warm-up, by one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert len(perform(folder, planned("table6", rows=ROWS)).performed) == len(ROWS)
    return folder


ROWS = ("t1.00", "t0.70")
GRID = ("table6", "--methods", ",".join(ROWS))


def tables(folder):
    from lora_drop.experiments.report import report

    report(folder / "results")
    return {name: (folder / "results" / "table6" / "tiny-roberta" / name).read_bytes() for name in TEXTS}


def adapters(folder):
    return {path.parts[-3]: path.read_bytes() for path in folder.glob("runs/*/*/adapter/adapter_model.safetensors")}


@slow
def test_several_workers_give_the_same_tables(alone, tmp_path, capsys):
    """Each a run at a time; those that need the same warm-up make it once."""
    with pytest.raises(SystemExit) as end:
        cli.main([*command(tmp_path, *GRID)[3:], "--jobs", "2"])
    assert end.value.code == 0 and "Table 6" in capsys.readouterr().out
    assert not workers_of(os.getpid())
    assert tables(tmp_path) == tables(alone) and adapters(tmp_path) == adapters(alone)
    records = read_records(tmp_path / "results" / "table6" / "tiny-roberta")
    assert sum("shared_from" not in record.stages["score"] for record in records) == 1


@slow
def test_each_of_two_commands_on_one_grid_ends_with_the_whole_table(alone, tmp_path):
    both = [subprocess.Popen(command(tmp_path, *GRID), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=250)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [text.count("50.0 (1)") for text in printed] == [len(ROWS)] * 2
    assert tables(tmp_path) == tables(alone) and adapters(tmp_path) == adapters(alone)


@posix
@slow
def test_a_killed_worker_fails_its_run_alone_and_the_same_command_continues(alone, tmp_path):
    process = start(tmp_path, "--jobs", "2")
    (first, *_) = at_work(process, tmp_path)
    os.kill(first, signal.SIGKILL)
    _, told = process.communicate(timeout=250)
    assert process.returncode == 1 and "its process ended with SIGKILL" in told, told
    assert len(list(tmp_path.glob("results/table6/*/*.json"))) == len(ROWS) - 1
    assert len(perform(tmp_path, planned("table6", rows=ROWS)).performed) == 1
    assert tables(tmp_path) == tables(alone) and adapters(tmp_path) == adapters(alone)


@posix
@slow
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_no_worker_outlives_its_command(sent, code, tmp_path):
    process = start(tmp_path, "--jobs", "2")
    workers = at_work(process, tmp_path)
    process.send_signal(getattr(signal, sent))
    _, told = process.communicate(timeout=100)
    assert process.returncode == code, told
    until(lambda: not any(map(alive, workers)))
    assert "Traceback" not in told and (sent == "SIGKILL" or "The same command continues" in told), told
    ended = [read_json(path)["status"] for path in tmp_path.glob("runs/*/*/run.json")]
    assert ended and set(ended) == {"interrupted"}


@posix
@slow
def test_a_worker_that_died_while_it_had_nothing_to_do_fails_no_run(tmp_path):
    one, two = planned("table1", rows=["lora", "tied_lora"])
    with local.Processes(1, tmp_path / "runs", nothing) as engine:
        for number, run in enumerate((one, two)):
            engine.begin(number, run, Reporter)
            while not (ended := engine.ended(1.0)):
                pass
            assert ended[0][1].record is not None, ended[0][1].note
            process = engine.workers[0].process
            process.kill()
            process.join(60)


def nothing():
    pass


@slow
def test_a_run_does_not_fail_because_nobody_hears_it(tmp_path):
    """A worker writes into the pipe of a parent that was killed, before it learns that it was."""
    (run,) = planned("table1", rows=["lora"])
    pipe, parents = Pipe()
    parents.close()
    end = perform_run(run, tmp_path / "runs", Relay(partial(local.tell, pipe)))
    assert end.record is not None, end.note


def start(folder, *more):
    return subprocess.Popen(
        [*command(folder, *GRID), *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def workers_of(pid):
    """The workers of a command, without multiprocessing's own helper."""
    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]
    return []


def at_work(process, folder):
    """Wait until a worker trains; return the workers, that one first."""
    found = []

    def busy():
        assert process.poll() is None, process.communicate()
        found[:] = [owner.pid for path in folder.glob("runs/*/*/.lock") if (owner := locks.owner(path))]
        return found and list(folder.glob("runs/*/*/checkpoints/*/inputs"))

    until(busy)
    return list(dict.fromkeys([*found, *workers_of(process.pid)]))


def alive(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def until(true, seconds=100):
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.02)


def test_waiting_for_a_lock_that_is_free_is_not_in_vain(tmp_path):
    """Its holder was killed while the run waits for its next attempt."""
    lock, gone = tmp_path / "lock", subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock.touch()
    write_json(tmp_path / "lock.owner", Owner(gone.pid, socket.gethostname(), time.time())._asdict())
    wait = engine._Wait(lock, since=time.monotonic() - 1e6)
    assert not wait.vain
    with FileLock(lock):
        assert wait.vain
