"""A part of `make torture`, as a command of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the fork server is for Linux")
def test_a_part_of_the_torture_ends_without_a_fault():
    command = [sys.executable, "-m", "torture", "--share", "0.015", "--jobs", "1", "--runs", "lora_drop"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "FAULT" not in ended.stdout, ended.stdout + ended.stderr
    assert "every 6th change of a file | 6 | 400 | 0 |" in ended.stdout
