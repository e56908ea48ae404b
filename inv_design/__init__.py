"""The science of inverse materials design: crystals, models and numbers; no database, no launchpad."""

__version__ = "0.1.0"
