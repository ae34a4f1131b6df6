"""The page of a run, or of several: one self-contained HTML file."""
