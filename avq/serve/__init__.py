"""Runs of a configuration: checks, components, log records and the run itself."""

from avq.serve.run import run_config, serve, summary_tables

__all__ = ["run_config", "serve", "summary_tables"]
