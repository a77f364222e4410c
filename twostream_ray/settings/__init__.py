"""Settings: frozen dataclasses from YAML, JSON and dotted options, their bounds and names."""
