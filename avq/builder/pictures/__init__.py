"""Pictures of a build: found, read, split into calibration and held-out ones, and answered by the float model."""
