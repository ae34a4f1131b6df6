"""A finished run in the forms that others read. Adding one: a function in a file here, and its name in `targets.py`."""
