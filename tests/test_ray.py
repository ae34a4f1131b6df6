"""A grid on a Ray cluster: two nodes on this machine, one of them killed in the middle."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from grids import TEXTS, command, perform, planned

from lora_drop.cli import app as cli
from lora_drop.experiments.report import report
from lora_drop.files import read_json
from lora_drop.runs import locks

ray_installed = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: the extra `ray`")
slow = pytest.mark.slow
ROWS = ("full", "lora", "tied_lora")
GRID = ("table1", "--methods", ",".join(ROWS), "--engine", "ray")
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """A head and a second node, of one CPU each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parent.parent)}
    from ray.cluster_utils import Cluster

    before = of_ray()
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield made
    made.shutdown()
    until(lambda: of_ray() <= before)


@ray_installed
@slow
@pytest.mark.timeout(600)
def test_two_nodes_of_which_one_is_killed_give_the_tables_of_one_process(cluster, tmp_path):
    second = cluster.add_node(**NODE)
    process = start(tmp_path / "ray", *GRID, "--address", cluster.address)
    raylet = second.all_processes["raylet"][0].process.pid
    until(lambda: running(process) and any(parent(owner.pid) == raylet for owner in owners(tmp_path)), 200)
    cluster.remove_node(second, allow_graceful=False)
    printed, told = process.communicate(timeout=250)
    assert process.returncode == 0 and "Table 1" in printed, told
    assert "was lost; its run continues on" in told and told.count("accuracy ") == len(ROWS), told
    alone = tmp_path / "alone"
    assert len(perform(alone, planned("table1", rows=ROWS)).performed) == len(ROWS)
    assert tables(tmp_path / "ray") == tables(alone)


@ray_installed
@slow
def test_rows_that_a_node_lacks_are_a_message_that_names_it(cluster, tmp_path):
    absent = ["--tasks", "rte", "--data-dir", str(tmp_path), "--offline"]
    process = start(tmp_path, *GRID[:2], "lora", *GRID[3:], "--address", cluster.address, *absent)
    _, told = process.communicate(timeout=250)
    (line,) = [line for line in told.splitlines() if line.startswith("Failed: ")]
    assert (
        process.returncode == 1 and f": on {os.uname().nodename} (" in line and "RTE/train.tsv does not exist" in line
    ), told


@ray_installed
@slow
def test_ctrl_c_ends_a_cluster_of_this_command_and_keeps_the_runs(tmp_path):
    before = of_ray()
    process = start(tmp_path, *GRID)
    until(lambda: running(process) and owners(tmp_path), 200)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 130 and "The same command continues" in told and "Traceback" not in told, told
    until(lambda: of_ray() <= before)
    assert {read_json(path)["status"] for path in tmp_path.glob("runs/*/*/run.json")} == {"interrupted"}


@ray_installed
@pytest.mark.parametrize(("address", "text"), [("127.0.0.1:9", "No Ray cluster answers"), ("ray://a:1", "HOST:PORT")])
def test_an_address_without_a_cluster_is_said_at_once(address, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command(tmp_path, *GRID)[3:], "--address", address])
    assert end.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--engine", "rai"], "local or ray"),
        (["--address", "auto"], "are only for --engine ray"),
        (["--gpus-per-run", "1"], "are only for --engine ray"),
        (["--engine", "ray", "--jobs", "2"], "--jobs is for --engine local"),
    ],
)
def test_options_of_another_engine_are_refused(options, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command(tmp_path, "table1")[3:], *options])
    assert end.value.code == 2 and text in capsys.readouterr().err and not list(tmp_path.iterdir())


def start(folder, *arguments):
    said = [part for part in command(folder, *arguments) if part != "--quiet"]
    return subprocess.Popen(said, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def running(process):
    assert process.poll() is None, process.communicate()
    return True


def owners(folder):
    return [owner for path in folder.rglob(".lock") if (owner := locks.owner(path))]


def parent(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).ppid()
    return None


def of_ray():
    """The processes of Ray on this machine."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        names = [process.info["name"], *(process.info["cmdline"] or [])[:1]]
        if any(name in ("raylet", "gcs_server") or name.startswith("ray::") for name in names):
            found.add(process.pid)
    return found


def tables(folder):
    report(folder / "results")
    return {name: (folder / "results" / "table1" / "tiny-roberta" / name).read_bytes() for name in TEXTS}


def until(true, seconds=60):
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.05)
