"""The distribution's name and version, each in one place."""

DISTRIBUTION = "localflow-engine"
__version__ = "0.1.0"
