"""Train the replicas and write their ONNX files next to this one: ``python -m tests.replicas.train``.

Scenes are drawn into ``--cache`` first (6000 take 1.2 GB); trained weights are kept there too, so that one family can
be trained again alone (``--only ssd``) or longer (``--resume``). A replica takes 3 to 8 minutes of one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import time
import zlib

import numpy as np
import torch
from torch import nn

from avq.scenes.train.__main__ import Averaged, make_optimizer
from avq.scenes.train.data import Batch, Batches, Cache, build_cache
from avq.scenes.train.evaluate import Accuracy, held_out_accuracy
from tests.replicas.export import write_onnx
from tests.replicas.replica import RECIPES, Replica

HERE = pathlib.Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder for scenes and trunks")
    parser.add_argument("--output", type=pathlib.Path, default=HERE)
    parser.add_argument("--only", action="append", choices=RECIPES, help="train only these")
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=float, default=1.0, help="times as many steps as the recipes say")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--resume", action="store_true", help="go on from the weights that the cache keeps")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    build_cache(asked.cache, asked.scenes, asked.threads)
    for name in asked.only or RECIPES:
        replica = train(name, asked.cache, asked.steps, asked.rate, resume=asked.resume)
        write_onnx(replica, asked.output / f"{name}.onnx", seed=zlib.crc32(name.encode()))
        size = (asked.output / f"{name}.onnx").stat().st_size
        accuracy = judged(replica, 200)
        print(
            f"{name}: {size / 1000:.0f} KB, mAP50-95 {accuracy.map:.4f}, AP50 {accuracy.ap50:.4f}", flush=True
        )


def train(name: str, cache: pathlib.Path, times: float, rate: float, *, resume: bool) -> Replica:
    """The averaged weights after the recipe's steps; they are kept in ``cache`` for those that start from them."""
    recipe = RECIPES[name]
    seed = zlib.crc32(name.encode()) + resume
    torch.manual_seed(seed)
    replica = Replica(recipe)
    if resume:
        replica.load_state_dict(_kept(cache / f"{name}.npz"))
    elif recipe.start is not None:
        kept = _kept(cache / f"{recipe.start}.npz")
        trunk = {key: value for key, value in kept.items() if key.startswith("trunk.")}
        replica.load_state_dict({**replica.state_dict(), **trunk})
    replica = replica.to(memory_format=torch.channels_last)
    averaged, optimizer = Averaged(replica), make_optimizer(replica, rate)
    feed, steps, started = (
        Batches(Cache(cache), recipe.batch, seed),
        int(recipe.steps * times),
        time.monotonic(),
    )
    for step, batch in enumerate(itertools.islice(feed, steps)):
        feed.zoom_share = 0.5 if step < 0.75 * steps else 0.2
        for group in optimizer.param_groups:
            group["lr"] = rate * warmth(step, steps)
        frozen = recipe.start is not None and not resume and step < recipe.frozen * steps
        loss = learn(replica.train(), optimizer, batch, frozen=frozen)
        averaged.update(replica)
        if step % 50 == 0:
            print(f"{name} {step}/{steps} loss {loss:.3f} {time.monotonic() - started:.0f} s", flush=True)
    trained = averaged.model
    assert isinstance(trained, Replica)
    np.savez(cache / f"{name}.npz", **{key: value.numpy() for key, value in trained.state_dict().items()})
    return trained


def warmth(step: int, steps: int) -> float:
    """Share of the highest rate: up over a tenth of the steps, then a cosine down to 2 %."""
    return min(1.0, 10 * (step + 1) / steps) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def _kept(path: pathlib.Path) -> dict[str, torch.Tensor]:
    kept = np.load(path)
    return {key: torch.from_numpy(kept[key]) for key in kept.files}


def learn(replica: Replica, optimizer: torch.optim.Optimizer, batch: Batch, *, frozen: bool = False) -> float:
    """One step. The trunk's convolutions run in bfloat16, head and losses in float32."""
    replica.trunk.train(not frozen)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(not frozen):
        features = replica.trunk(batch.images)
    raw = replica.head([x.float() for x in features])
    loss = replica.head.loss(raw, batch.boxes, batch.classes)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(replica.parameters(), 10.0)
    optimizer.step()
    return loss.item()


def judged(replica: Replica, scenes: int) -> Accuracy:
    """On scenes that training never saw."""

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            found = replica.head.predict(replica(torch.from_numpy(images)))
        return found.boxes[0].numpy(), found.logits[0].sigmoid().numpy()

    return held_out_accuracy(predict, scenes)


if __name__ == "__main__":
    main()
