"""Settings: parsing of dataclasses from YAML, JSON and the command line; validation of numbers and names."""
