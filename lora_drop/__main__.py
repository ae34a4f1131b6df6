"""`python -m lora_drop` is the command `lora-drop`."""

from lora_drop.cli.app import main

if __name__ == "__main__":
    main()
