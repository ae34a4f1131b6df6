"""Export of a run to other formats. To add one, write a function in a file here and name it in `targets.py`."""
