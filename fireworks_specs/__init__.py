"""Execution on a FireWorks launchpad: firetasks, workflow factories, templates."""
