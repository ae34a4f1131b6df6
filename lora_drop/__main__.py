"""The command `lora-drop`, also run as `python -m lora_drop`. Ctrl-C ends it quietly, even while it is loading."""

from lora_drop.interruption import end_at_once


def main() -> None:
    """Run the command line of this process."""
    end_at_once()
    from lora_drop.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
