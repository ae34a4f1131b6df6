"""Import of torch, transformers and datasets without their messages and bars."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout

from lora_drop.interruption import at_once
from lora_drop.progress import SILENT, Reporter


def quiet_libraries(report: Reporter = SILENT) -> None:
    """Let transformers print only errors, and let neither it nor datasets draw bars: the reporter says what matters."""
    report.doing("starting torch and transformers")
    with at_once(report.close):
        import datasets
        from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if "WANDB_MODE" in os.environ:  # transformers then prints to standard output, which is for results
        with redirect_stdout(sys.stderr):
            import transformers.integrations.integration_utils  # noqa: F401
