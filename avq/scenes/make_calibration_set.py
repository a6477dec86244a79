"""``python -m avq.scenes.make_calibration_set -o DIR``: the built-in set, or any other labelled set of scenes.

Without further options this writes the pictures and labels of calibration_data/road_scenes again, byte for byte
where the JPEG encoder is the same.
"""

from __future__ import annotations

import argparse
import pathlib

from avq.scenes.dataset import FORMATS, write_labelled_set
from avq.scenes.labels import WEATHERS

# Apart from the training (from 1 000 000) and held-out (from 10 000) seeds of avq.scenes.train.
CALIBRATION_SEED = 20_000
CALIBRATION_SCENES = 64
# 16 px in the detector's 320x192 input.
IGNORE_BELOW_PX = 32.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avq.scenes.make_calibration_set", description="Write labelled scenes."
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the folder to write")
    parser.add_argument("--start-seed", type=int, default=CALIBRATION_SEED)
    parser.add_argument("--scenes", type=int, default=CALIBRATION_SCENES)
    parser.add_argument("--weather", choices=WEATHERS, default="mixed")
    parser.add_argument("--format", choices=FORMATS, default="jpg")
    parser.add_argument("--ignore-below-px", type=float, default=IGNORE_BELOW_PX, help="in picture pixels")
    asked = parser.parse_args()
    seeds = range(asked.start_seed, asked.start_seed + asked.scenes)
    written = write_labelled_set(
        asked.output,
        seeds=seeds,
        weather=asked.weather,
        ignore_below_px=asked.ignore_below_px,
        picture_format=asked.format,
    )
    print(f"{written} scenes in {asked.output}")


if __name__ == "__main__":
    main()
