"""Measurements: accuracy against labels, fidelity to the float model, SQNR, latency, drift.

Import the module you need (``avq.measure.fidelity``): nothing is imported here, so that one metric loads only its
own libraries.
"""
