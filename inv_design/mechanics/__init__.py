"""Relaxation, equations of state, elastic tensors and their quality flags."""
