"""Plots and the HTML report, made from plain records."""
