"""``python -m avq.scenes.train -o detector.onnx``: train the built-in detector from nothing."""

from __future__ import annotations

import argparse
import pathlib
import tempfile

from avq.scenes.train.train import TrainOptions, run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avq.scenes.train", description="Train the built-in detector."
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the ONNX file to write")
    parser.add_argument(
        "--cache", type=pathlib.Path, help="folder for rendered scenes, kept if given (about 3 GB)"
    )
    parser.add_argument("--scenes", type=int, default=TrainOptions.scenes)
    parser.add_argument("--minutes", type=float, default=TrainOptions.minutes)
    parser.add_argument("--batch", type=int, default=TrainOptions.batch)
    parser.add_argument("--threads", type=int, default=TrainOptions.threads)
    parser.add_argument("--rate", type=float, default=TrainOptions.rate, help="highest learning rate")
    parser.add_argument("--start", type=pathlib.Path, help="go on from this ONNX file of an earlier run")
    parser.add_argument("--seed", type=int, default=TrainOptions.seed)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options = TrainOptions(
            asked.output,
            asked.cache or pathlib.Path(scratch),
            scenes=asked.scenes,
            minutes=asked.minutes,
            batch=asked.batch,
            rate=asked.rate,
            threads=asked.threads,
            seed=asked.seed,
            start=asked.start,
        )
        accuracy = run(options)
    print(f"mAP50-95 {accuracy.map:.4f}  AP50 {accuracy.ap50:.4f}")
    for name, value in accuracy.per_class.items():
        print(f"  {name:14s} {value:.4f}")


if __name__ == "__main__":
    main()
