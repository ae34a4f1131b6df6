"""Standard output that is closed, full, or that nobody reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("words", [["--version"], ["config"], ["tasks", "--json"], ["run", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    ended = lora_drop(*words, stdout=writer)
    os.close(writer)
    assert ended.returncode == 1 and ended.stderr == ""


def test_no_standard_output_at_all():
    ended = lora_drop("config", preexec_fn=lambda: os.close(1))
    assert ended.returncode == 0 and ended.stderr == ""


def test_a_full_disk_behind_standard_output_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        ended = lora_drop("config", stdout=full)
    assert ended.returncode == 2 and ended.stderr.startswith("Error: No space left on device")


def lora_drop(*words, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lora_drop", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options)
