"""A run configuration put to work: checked before anything is opened, then served with its page, sinks and alerts."""

from avq.serve.serving import run_config, serve
from avq.serve.summary import summary_tables

__all__ = ["run_config", "serve", "summary_tables"]
