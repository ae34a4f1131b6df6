"""Tasks, one file per benchmark. To add one, write a file with a `Task` and name it in `registry.py`."""
