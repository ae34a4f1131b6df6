"""The methods to compare, one file each. To add one, write a file with a `Method` and add its name to `registry.py`."""
