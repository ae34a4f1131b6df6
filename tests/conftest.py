"""Tests run offline, and with the tensor shapes in signatures checked at run time."""

import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:  # tests started in the background, or with nohup
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))  # the benchmark
os.environ["MPLBACKEND"] = "agg"
_CACHE = tempfile.TemporaryDirectory(prefix="lora-drop-cache-")  # removed when the tests end
os.environ["LORA_DROP_CACHE"] = _CACHE.name

with install_import_hook("lora_drop.pruning.importance", "beartype.beartype"):
    import lora_drop.pruning.importance  # noqa: F401


def pytest_collection_modifyitems(items):
    """Files with slow tests come first (`--no-loadscope-reorder` keeps the order), so that no core waits for one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def data_dir() -> Path:
    """The folder with the official files; tests on real rows are skipped without."""
    folder = os.environ.get("LORA_DROP_DATA")
    if not folder:
        pytest.skip("needs the official files: set LORA_DROP_DATA")
    return Path(folder)


@pytest.fixture(autouse=True)
def no_plugin_stays():
    """Workers of later tests load no plugin of an earlier one."""
    yield
    from lora_drop.plugins import LOADED

    LOADED.clear()
