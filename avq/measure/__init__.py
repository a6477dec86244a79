"""Measuring: accuracy against labels, fidelity against the float model, noise, latency, drift.

Import the module you need (``avq.measure.fidelity``); nothing is imported here, so that looking at
one number loads one library.
"""
