"""Functions of ``avq log``: inspect, recover, cut, merge, convert and verify logs; blur people and vehicles.

MCAP files and rosbag2 folders are read the same way, as an iterator of ``Record``; ``damage`` describes what could
not be read. Output is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations
