"""A DPO step of ResNet-50 on 32x32 images: ours against the project that this one grew from.

    python -m benchmarks.bench_image [--rounds N]                  all in turn; results go to benchmarks/bench_image.csv
    python -m benchmarks.bench_image ours-cached|ours-live|seed    one, once; prints its figures as JSON

Each takes steps of 64 random images of 10 classes in float32: imagenet stem, beta 0.1, Adam at 1e-5, gradients clipped at 10.
A step is timed from the end of the previous one, loading included. Validation, checkpoints and start-up are not timed. The
`flops_share` is that of the arithmetic that the step needs, at the rate of matrix products, in the time that it takes.

ours-cached  The trainer on the task of stages/dpo_image.py, without augmentation. The reference's log-probabilities are
             looked up; they are computed once before the first step, outside the timing (`cache_images_per_second`).
ours-live    The same with shifts and mirror images, for which the reference is computed in every step.
seed         The other project's loop, rewritten here from its description, without its validation and its moving reference:
             a DataLoader of PIL images, cropped (32 of 32 pixels), converted to tensors and normalised one by one; y_l is
             drawn from all classes at each access; policy and reference are both in training mode, both with gradients.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from prefdag.lifecycle.environment import set_environment

RESULTS = Path(__file__).with_name("bench_image.csv")
WARM_UP, STEPS = 4, 16
BATCH, SIZE, CLASSES = 64, 32, 10
BETA, RATE, CLIP = 0.1, 1e-5, 10.0

Figures = dict[str, float]


def figures(ends: Sequence[float]) -> Figures:
    """The median step after the warm-up, given the times at which steps ended, in seconds."""
    seconds = statistics.median(end - start for start, end in pairwise(ends[WARM_UP - 1 :]))
    return {"step_seconds": seconds, "images_per_second": BATCH / seconds}


def ours(max_shift: int, flip: bool) -> Figures:
    """Time this project's step."""
    import torch

    from benchmarks.dpo_training import product_rate
    from prefdag.check_params import load_params
    from prefdag.config.loss_options import LossOptions
    from prefdag.config.reference import Reference
    from prefdag.distributed.process import process
    from prefdag.dpo.preference import Preference
    from prefdag.image import model as resnet
    from prefdag.image.data import Augmentation, ImagePairs
    from prefdag.image.dpo_task import dpo_task, reference_logps
    from prefdag.image.negatives import negatives
    from prefdag.train.checkpoint import Checkpoints
    from prefdag.train.loop import fit
    from prefdag.train.task import Task, Tasks

    settings = load_params().dpo_image
    training = replace(
        settings.training,
        epochs=1,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        optimizer="adam",
        learning_rate=RATE,
        max_grad_norm=CLIP,
        precision="float32",
        validate_every=WARM_UP + STEPS,
        checkpoint_every=WARM_UP + STEPS,
    )
    frozen = Reference(update="none", alpha=None, every=None)
    settings = replace(settings, reference=frozen, max_shift=max_shift, flip=flip, training=training)
    preference = Preference("sigmoid", BETA, LossOptions(**dict.fromkeys(LossOptions.__dataclass_fields__)), {})
    augment = Augmentation(max_shift, flip, 0)
    torch.manual_seed(0)
    policy = resnet.build(resnet.Architecture("resnet50", "imagenet", 0.1, 3, CLASSES)).eval()
    reference = copy.deepcopy(policy).requires_grad_(False)

    def task(n: int) -> tuple[Task, float]:
        """A task of `n` random images, and the images per second at which the reference was computed."""
        images = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, device=process().device)
        y_w = torch.randint(0, CLASSES, (n,), device=process().device)
        split = ImagePairs(list(range(n)), images, y_w, (y_w + 1) % CLASSES)
        y_l = negatives("random", {"train": split}, reference, CLASSES, 0)["train"]
        start = time.perf_counter()
        ref_logps = reference_logps(reference, images, augment, settings)
        speed = n / (time.perf_counter() - start)
        return dpo_task(split, augment, y_l, ref_logps, preference), speed

    train, speed = task(BATCH * (WARM_UP + STEPS))
    needed = flops(policy, backward=True) + (flops(reference, backward=False) if augment.changes else 0)
    ends: list[float] = []

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if "loss" in metrics:  # not a validation
            ends.append(time.perf_counter())

    before = product_rate("float32")
    with tempfile.TemporaryDirectory() as empty:
        # `fit` needs a validation task; one image is enough.
        fit(policy, Tasks(train, task(1)[0]), training, seed=0, checkpoints=Checkpoints(Path(empty)), log=log)
    measured = figures(ends)
    rate = (before + product_rate("float32")) / 2  # a machine's speed varies
    measured["flops_share"] = needed / measured["step_seconds"] / rate
    return measured | ({} if augment.changes else {"cache_images_per_second": speed})


def flops(model: Any, backward: bool) -> int:
    """The multiplications and additions of a pass of a batch, and of the gradients of all weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        output = model(torch.zeros(BATCH, 3, SIZE, SIZE, device=next(model.parameters()).device))
        if backward:
            output.sum().backward()
    model.zero_grad()
    return int(counter.get_total_flops())


class SeedImages:
    """Random images as the seed project's dataset returns them: (3, 32, 32) in -1..1, the class, and a random class."""

    def __init__(self, n: int) -> None:
        import numpy as np
        from torchvision import transforms

        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
        self.labels = rng.integers(0, CLASSES, n)
        steps = [transforms.RandomCrop(SIZE), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Any, int, int]:
        import torch
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), int(self.labels[i]), int(torch.randint(CLASSES, ()))


def seed() -> Figures:
    """Time the seed project's step."""
    import torch
    import torch.nn.functional as F
    import torchvision
    from torch import nn
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    # Not `process().device`, which would also change how memory is reused.
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    policy = torchvision.models.resnet50()
    width = policy.fc.in_features
    policy.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(width, width), nn.Dropout(0.1), nn.Linear(width, CLASSES))
    policy.to(device)
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), RATE)
    ends = []
    for batch in DataLoader(SeedImages(BATCH * (WARM_UP + STEPS)), BATCH, shuffle=True):  # type: ignore[arg-type]
        images, y_w, y_l = (part.to(device) for part in batch)
        optimizer.zero_grad()
        logps, ref_logps = (model(images).log_softmax(1) for model in (policy, reference))
        chosen, rejected = ((logps - ref_logps).gather(1, y[:, None])[:, 0] for y in (y_w, y_l))
        loss = -F.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        float(loss.detach())  # as for a progress bar
        ends.append(time.perf_counter())
    return figures(ends)


CONTENDERS: Mapping[str, Callable[[], Figures]] = {
    "ours-cached": lambda: ours(max_shift=0, flip=False),
    "ours-live": lambda: ours(max_shift=4, flip=True),
    "seed": seed,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", nargs="?", choices=CONTENDERS)
    parser.add_argument("--rounds", type=positive, default=5)
    arguments = parser.parse_args()
    if arguments.contender:
        set_environment()  # before torch is imported, so that the other project's threads do not spin either
        print(json.dumps(CONTENDERS[arguments.contender]()))
        return
    command = [sys.executable, "-m", "benchmarks.bench_image"]
    summary = summarise(
        run_rounds([Contender(name, [*command, name]) for name in CONTENDERS], arguments.rounds), "seed"
    )
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
