"""A run configuration put to work: checked before anything is opened, then served with its page, sinks and alerts."""

from avq.serve.run import run_config, serve, summary_tables

__all__ = ["run_config", "serve", "summary_tables"]
