"""Output in any encoding: the real command line in processes whose streams cannot hold all signs."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_drop.cli.terminal import tolerate_encodings

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parent.parent / "results"
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""Where Python takes ASCII for everything, also for files that are opened without an encoding."""


def lora_drop(*arguments, encoding, cwd, **environment):
    """Return (exit code, standard output, standard error), decoded strictly."""
    command = [sys.executable, "-m", "lora_drop.cli.app", *map(str, arguments)]
    surroundings = {**os.environ, "PYTHONIOENCODING": encoding, **environment}
    done = subprocess.run(command, capture_output=True, timeout=200, env=surroundings, cwd=cwd, check=False)
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


def test_a_run_and_its_profile_on_ascii_and_on_windows_streams(tmp_path):
    small = ["backbone=tiny:bert", "limit.train=40", "limit.eval=20", "train.epochs=1", "method.threshold=0.5"]
    options = [part for item in (*small, "device=cpu") for part in ("-o", item)]
    name = "Übung ≤ 中"
    code, shown, told = lora_drop("run", "-d", name, *options, encoding="ascii", cwd=tmp_path, **C_LOCALE)
    assert code == 0, told
    assert f" {'#' * 40}  retained" in shown and re.search(r"% +\.+ +share one LoRA", shown)
    (tmp_path / name / "importance.png").unlink()
    notebook = {"MPLBACKEND": "module://backend_of_another_installation"}
    code, shown, told = lora_drop("run", "-d", name, encoding="cp1252", cwd=tmp_path, **notebook)
    assert code == 0 and (tmp_path / name / "importance.png").is_file(), told
    assert f" {'#' * 40}  retained" in shown and shown.endswith("Files: Übung <= \\u4e2d\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_texts_of_ours_are_readable_in_every_encoding(encoding, tmp_path):
    code, shown, told = lora_drop("config", encoding=encoding, cwd=tmp_path)
    assert (code, told) == (0, "")
    norm = {"ascii": "||DW x||^2", "latin-1": "||DW x||²", "cp1252": "||DW x||²", "utf-8": "‖ΔW x‖²"}
    assert f"({norm[encoding]} for output)" in shown
    code, shown, told = lora_drop("config", "-o", "method.threshold=2", encoding=encoding, cwd=tmp_path)
    allowed = "must be in the range 0 < value ≤ 1" if encoding == "utf-8" else "must be in the range 0 < value <= 1"
    assert (code, shown) == (2, "") and allowed in told
    code, shown, told = lora_drop("reproduce", "--help", encoding=encoding, cwd=tmp_path)
    assert (code, told) == (0, "") and "A,B,..." in shown


def test_a_letter_without_a_stand_in_is_escaped_and_one_that_fits_is_kept(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    tolerate_encodings()
    for stream in streams:
        stream.write("ü ± █░ ≤ 中 \udcff")
        stream.flush()
        assert stream.buffer.getvalue().decode("cp1252") == "ü ± #. <= \\u4e2d \\udcff"


@pytest.mark.parametrize("backend", ["nonsense", "module://matplotlib_inline.backend_of_a_notebook", ""])
def test_the_backend_of_a_notebook_does_not_matter(backend, tmp_path):
    shutil.copytree(RESULTS / "smollm2", tmp_path / "results" / "smollm2")
    figure = tmp_path / "results" / "smollm2" / "packaged-smollm2-135m" / "importance.png"
    figure.unlink(missing_ok=True)
    code, _, told = lora_drop("report", encoding="utf-8", cwd=tmp_path, MPLBACKEND=backend)
    assert code == 0 and figure.is_file(), told
