"""Firetasks: ids in, records out."""
