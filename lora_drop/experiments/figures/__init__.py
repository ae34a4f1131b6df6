"""The figures of experiments, one file per figure."""
