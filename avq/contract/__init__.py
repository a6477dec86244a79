"""Suites that any quantizer, engine or decoder must pass; authors of plugins run them in their own tests."""
