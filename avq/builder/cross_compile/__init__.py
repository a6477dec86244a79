"""Cross-compile targets: FP16 around INT8, engines compiled ahead, a cost model in place of times."""
