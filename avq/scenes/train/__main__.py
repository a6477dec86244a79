"""``python -m avq.scenes.train -o detector.onnx``: train the built-in detector from scratch."""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import pathlib
import tempfile
import time
from dataclasses import dataclass

import torch
from torch import nn

from avq.scenes.train.data import Batch, Batches, Cache, build_cache
from avq.scenes.train.evaluate import Accuracy, held_out_accuracy, onnx_predictor
from avq.scenes.train.export import restore, write_onnx
from avq.scenes.train.model import RoadDetector, assign, detection_loss

# The training loop: a budget of minutes, a cosine learning rate over them, averaged weights.


@dataclass(frozen=True)
class TrainOptions:
    """What a run needs.

    The packaged detector took about 6000 steps in two runs: 2000 from nothing at these defaults, then 3900 from
    that file with ``start``, one thread, a rate of 7e-4 and seed 1.
    """

    output: pathlib.Path
    cache: pathlib.Path
    scenes: int = 16_000
    minutes: float = 41.0
    batch: int = 8
    rate: float = 1e-3
    threads: int = 2
    seed: int = 0
    start: pathlib.Path | None = None


class Averaged:
    """Exponential moving average of all weights and statistics; this is what gets exported."""

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay, self.steps = decay, 0

    def update(self, model: nn.Module) -> None:
        self.steps += 1
        keep = self.decay * (1 - math.exp(-self.steps / 300))
        with torch.no_grad():
            for mine, theirs in zip(
                self.model.state_dict().values(), model.state_dict().values(), strict=True
            ):
                if mine.dtype.is_floating_point:
                    mine.mul_(keep).add_(theirs, alpha=1 - keep)
                else:
                    mine.copy_(theirs)


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW; biases and normalisation are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def rate_at(progress: float, step: int, top: float) -> float:
    """Warm up over 300 steps, then a cosine down to 2 % at the end."""
    warm = min(1.0, (step + 1) / 300)
    return top * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def learn(model: RoadDetector, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, float]:
    """One step; the class and the box loss. Convolutions run in bfloat16, decoding and losses in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        boxes, logits = model(batch.images)
    targets = assign(model.points, model.point_strides, boxes, logits, batch.boxes, batch.classes)
    class_loss, box_loss = detection_loss(boxes, logits, targets)
    optimizer.zero_grad(set_to_none=True)
    (class_loss + box_loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return class_loss.item(), box_loss.item()


def run(options: TrainOptions) -> Accuracy:
    """Trains, exports and judges; the file at ``output`` is refreshed as the training goes."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    build_cache(options.cache, options.scenes, options.threads)
    feed = Batches(Cache(options.cache), options.batch, options.seed)
    model = RoadDetector()
    if options.start is not None:
        restore(model, options.start, itertools.islice(feed, 24))
    model = model.train().to(memory_format=torch.channels_last)
    averaged = Averaged(model)
    optimizer = make_optimizer(model, options.rate)
    started, next_export = time.monotonic(), 0.25
    for step, batch in enumerate(feed):
        progress = (time.monotonic() - started) / (options.minutes * 60)
        if progress >= 1:
            break
        feed.zoom_share = 0.6 if progress < 0.75 else 0.25
        for group in optimizer.param_groups:
            group["lr"] = rate_at(progress, step, options.rate)
        class_loss, box_loss = learn(model, optimizer, batch)
        averaged.update(model)
        if step % 100 == 0:
            print(f"{progress:6.1%}  step {step}  class {class_loss:.3f}  box {box_loss:.3f}", flush=True)
        if progress >= next_export:
            next_export += 0.2
            print(_export_and_judge(averaged, options.output, 100), flush=True)
    return _export_and_judge(averaged, options.output, None)


def _export_and_judge(averaged: Averaged, path: pathlib.Path, scenes: int | None) -> Accuracy:
    assert isinstance(averaged.model, RoadDetector)
    write_onnx(averaged.model, path)
    predict = onnx_predictor(path)
    return held_out_accuracy(predict) if scenes is None else held_out_accuracy(predict, scenes)


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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options = TrainOptions(
            arguments.output,
            arguments.cache or pathlib.Path(scratch),
            scenes=arguments.scenes,
            minutes=arguments.minutes,
            batch=arguments.batch,
            rate=arguments.rate,
            threads=arguments.threads,
            seed=arguments.seed,
            start=arguments.start,
        )
        accuracy = run(options)
    print(f"mAP50-95 {accuracy.map:.4f}  AP50 {accuracy.ap50:.4f}")
    for name, value in accuracy.per_class.items():
        print(f"  {name:14s} {value:.4f}")


if __name__ == "__main__":
    main()
