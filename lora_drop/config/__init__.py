"""What a run is told: frozen dataclasses, read strictly from YAML and overrides."""
