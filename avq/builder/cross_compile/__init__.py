"""Targets that are not here: FP16 around INT8, engines compiled ahead, a cost model where nothing can be timed."""
