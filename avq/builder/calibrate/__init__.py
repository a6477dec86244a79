"""Counts of activations, and the ranges they give: observe, counting, histogram, run, avqcal; thresholds, stats."""
