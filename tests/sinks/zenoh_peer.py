"""A Zenoh peer in a process of its own: prints READY, then what it hears as one line of JSON per message.

Usage: python -m tests.sinks.zenoh_peer ENDPOINT KEY [PAUSE_MS]   (after each message)
"""

from __future__ import annotations

import json
import sys
import time

import zenoh

from avq.sinks.zenoh import DETECTIONS, vision_types


def main(endpoint: str, key: str, pause_ms: str = "0") -> None:
    store = vision_types()
    config = zenoh.Config()
    config.insert_json5("listen/endpoints", json.dumps([endpoint]))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("transport/shared_memory/enabled", "false")  # as on another machine

    def hear(sample: zenoh.Sample) -> None:
        time.sleep(float(pause_ms) / 1000)
        message = store.deserialize_cdr(bytes(sample.payload), DETECTIONS)
        stamp = message.header.stamp
        print(
            json.dumps(
                {
                    "key": str(sample.key_expr),
                    "camera": message.header.frame_id,
                    "unix_ns": stamp.sec * 10**9 + stamp.nanosec,
                    "found": [
                        {
                            "label": one.results[0].hypothesis.class_id,
                            "score": one.results[0].hypothesis.score,
                            "center": [one.bbox.center.position.x, one.bbox.center.position.y],
                            "size": [one.bbox.size_x, one.bbox.size_y],
                        }
                        for one in message.detections
                    ],
                }
            ),
            flush=True,
        )

    with zenoh.open(config) as session:
        session.declare_subscriber(key, hear)
        print("READY", flush=True)
        sys.stdin.read()  # until the test closes it


if __name__ == "__main__":
    main(*sys.argv[1:])
