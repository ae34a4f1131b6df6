"""What is compared, one file per method. Adding one: a file with a `Method`, and its name in `registry.py`."""
