"""The job scripts for SLURM, with its variables, and stand-ins for the commands that they call."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts" / "slurm"
STANDINS = {
    "lora-drop": 'echo "$OMP_NUM_THREADS $@" | sed "s/ ${RAY_ADDRESS:-none}/ ADDRESS/"; trap "exit 143" TERM; eval "$WORK"',
    "ray": 'echo "ray $@" >> "$LOG"; test "$1" = status || exec sleep 100; until grep -q head "$LOG"; do sleep 0.1; done',
    "srun": """trap 'kill $(jobs -p)' TERM; for node in 0 1; do SLURM_NODEID=$node "$@" & done; wait""",
}
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def job(tmp_path):
    """Starts a job script as SLURM does."""
    for name, body in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(script, work, **variables):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORK": work, "LOG": str(tmp_path / "log")}
        slurm = {f"SLURM_{name}": value for name, value in variables.items()}
        command = ["bash", str(SCRIPTS / script), "table1", "--seeds", "0"]
        return subprocess.Popen(command, env={**os.environ, **own, **slurm}, stdout=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(("first", "number", "part"), [("0", "0", "1/8"), ("0", "7", "8/8"), ("1", "8", "8/8")])
def test_a_task_of_an_array_does_its_part(job, first, number, part):
    array = {"ARRAY_TASK_ID": number, "ARRAY_TASK_MIN": first, "ARRAY_TASK_COUNT": "8", "CPUS_PER_TASK": "4"}
    process = job("array.sbatch", "exit 1", **array)
    printed, _ = process.communicate(timeout=30)
    assert printed == f"4 reproduce table1 --seeds 0 --shard {part}\n" and process.returncode == 1


def test_a_grid_on_ray_ends_with_its_code_and_ends_the_nodes(job, tmp_path):
    process = job("ray.sbatch", "exit 1", JOB_ID="17")
    printed, _ = process.communicate(timeout=30)
    assert "reproduce table1 --seeds 0 --engine ray --address ADDRESS" in printed and process.returncode == 1
    log = (tmp_path / "log").read_text()
    assert "ray start --head --node-ip-address" in log and "--port 20017" in log


def test_the_signal_before_the_end_of_the_time_reaches_the_grid(job):
    process = job("ray.sbatch", "echo at work; while true; do sleep 0.1; done", JOB_ID="17")
    while process.stdout.readline() != "at work\n":
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
