"""Calibrate: count activations in histograms and derive clipping ranges from the counts."""
