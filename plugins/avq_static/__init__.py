"""Static INT8 with searched calibration: the strategy ``static``."""
