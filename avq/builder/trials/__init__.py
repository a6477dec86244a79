"""Trials of a plan on this machine: engines and encodings, right or wrong, and their times."""
