"""Metrics of generated crystals, predictions and campaigns."""
