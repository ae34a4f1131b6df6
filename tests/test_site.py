"""The documentation as a site: it builds with every link whole and loads nothing from elsewhere; the notebook runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_the_site_builds_and_needs_nothing_else(tmp_path):
    pytest.importorskip("material", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **proxies}, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("index.html")}
    assert {"tutorial", "own-data", "api", "plugins", "report", "serve"} <= pages.keys()
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*src=\"?(?:https?:)?//|<link[^>]*href=\"?(?:https?:)?//[^>]*stylesheet"
    )
    for name, page in pages.items():
        assert not loaded.search(page), name
    for name in ("lora_drop.api.score", "Selection", "load_adapter", "per_example"):
        assert name in pages["api"]


def test_the_notebook_runs_and_is_kept_without_outputs():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    nbclient.NotebookClient(
        notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
    shown = [output for cell in code for output in cell.outputs]
    tables = [output for output in shown if "text/html" in output.get("data", {})]
    assert len(tables) >= 3 and any("image/png" in output.get("data", {}) for output in shown)
