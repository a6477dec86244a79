"""Logs as files: look into them, recover, cut, merge, convert and check them; blur people and vehicles.

MCAP files and rosbag2 folders are read alike, as an iterator of ``Record``, and what could not be read is said in
``damage``. Everything written is written aside and renamed when it is whole.
"""

from __future__ import annotations
