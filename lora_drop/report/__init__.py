"""The report page of one or more runs: a single self-contained HTML file."""
