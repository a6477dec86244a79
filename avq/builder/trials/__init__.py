"""Every way to serve a plan on this machine: which engines and encodings, right or wrong, and how fast."""
