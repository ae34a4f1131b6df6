"""What is learnt, one file per benchmark. Adding one: a file with a `Task`, and its name in `registry.py`."""
