"""The configuration of a run: frozen dataclasses, read strictly from YAML and overrides."""
