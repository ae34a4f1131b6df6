"""The command line, called in this process."""

from lora_drop.cli import app


def call(*arguments) -> int:
    """Return the exit code of a command."""
    try:
        app.main([str(each) for each in arguments])
    except SystemExit as ended:
        return ended.code or 0
    return 0
