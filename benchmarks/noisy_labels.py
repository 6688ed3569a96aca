"""DPO against cross-entropy where people's answers about images are wrong or disagree.

    python -m benchmarks.noisy_labels run FOLDER    rows of benchmarks/noisy_labels.csv; continues where it stopped
    python -m benchmarks.noisy_labels table         the tables of docs/noisy_labels.md

FOLDER is a pipeline run: each seed splits its validated images again. A reference is warmed up on 500 images with right
labels. Then people compare two classes on 1,500 others, and the arms continue from the reference on their answers, with the
same steps. To afford a grid on one core, they train only the last of the four blocks and the head, without shifts, on what the
reference's first three blocks make of an image; one setting trains the whole network. An arm's settings are those of its three
tries with the lowest cross-entropy on the first seed's validation split, whose labels are right.
"""

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from benchmarks.fitting import fitted, unwatched
from benchmarks.harness import append, run_or_table
from prefdag.config.loss_options import LossOptions
from prefdag.dpo.preference import Preference
from prefdag.image import evaluate
from prefdag.image import model as resnet
from prefdag.image.classify import of_class, pair_batch
from prefdag.image.data import Augmentation, ImagePairs, normalise
from prefdag.stats.intervals import mean
from prefdag.train.task import Task, Tasks

if TYPE_CHECKING:
    from prefdag.config.params import Params
    from prefdag.config.training import Training

RESULTS = Path(__file__).with_name("noisy_labels.csv")
SEEDS = (0, 1, 2)  # of the splits, the reference, the answers and the order of the data
WARMUP_EPOCHS, SAME_EPOCHS, EPOCHS = 8, 3, 2  # of the reference, on trusted images and on answers; of the arms
ANNOTATORS = (0.1, 0.2, 0.3, 0.4, 0.45)  # how often each of five people is wrong
# Three tries an arm: learning rate, and beta or the reference's share of the target.
RATES = ((1e-5, 0.0), (5e-5, 0.0), (2e-4, 0.0))
BETAS = ((3e-5, 0.3), (1e-4, 0.3), (1e-4, 1.0))
SHARES = ((5e-5, 0.5), (5e-5, 0.8), (2e-4, 0.8))


class Sizes(NamedTuple):
    """How many images are trusted, how many are asked about, and the most epochs of a training."""

    trusted: int
    asked: int
    epochs: int


SIZES = Sizes(500, 1500, 10)


class Answers(NamedTuple):
    """What people said about N images, with what a model says of them: features, and the reference's log-probabilities."""

    features: Tensor  # float32 (N, ...): after the first three blocks
    ref_logps: Tensor  # float32 (N, classes)
    y_w: Tensor  # int64 (N,): preferred by the answer, or by most of them
    y_l: Tensor
    share: Tensor  # float32 (N,): the share of the votes for y_w
    wrong: float  # the share of wrong answers, which some arms are told


# What people are asked, and what they answer


def asked(kind: str, truth: Tensor, ref_logps: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The better and the worse of the two classes that people compare, int64 (N,) each.

    `random`: the true class and a random other one. `top two`: the reference's two most probable classes, of which the true
    one is the better; if it is neither, that is drawn.
    """
    n, classes = ref_logps.shape
    if kind == "random":
        return truth, (truth + torch.from_numpy(rng.integers(1, classes, n))) % classes
    first, second = ref_logps.topk(2, 1).indices.unbind(1)
    drawn = torch.from_numpy(rng.random(n) < 0.5)
    better = torch.where((first == truth) | (second == truth), first == truth, drawn)
    return torch.where(better, first, second), torch.where(better, second, first)


def answered(better: Tensor, worse: Tensor, wrong: Sequence[float], rng: np.random.Generator) -> tuple[Tensor, ...]:
    """y_w, y_l and the share of votes for y_w, (N,) each, of an odd number of people with these shares of wrong answers."""
    votes = torch.from_numpy(rng.random((len(better), len(wrong))) >= np.array(wrong)).float().mean(1)
    right = votes > 0.5
    return torch.where(right, better, worse), torch.where(right, worse, better), torch.maximum(votes, 1 - votes)


def wrong_votes(wrong: Sequence[float]) -> float:
    """The probability that most of these people are wrong."""
    outcomes = product((True, False), repeat=len(wrong))
    odds = [(sum(o), math.prod(w if e else 1 - w for e, w in zip(o, wrong, strict=True))) for o in outcomes]
    return sum(p for count, p in odds if 2 * count > len(wrong))


# The arms


def cross_entropy(answers: Answers, target: Callable[[Tensor, list[int]], Tensor]) -> Task:
    """Minimise -`target`(log-probabilities, rows)."""

    def forward(head: nn.Module, rows: Sequence[int], epoch: int | None) -> Mapping[str, Tensor]:
        return {"gain": target(logps_of(head, answers.features[list(rows)]), list(rows))}

    return Task(forward, lambda outputs: (-outputs["gain"], {}), [1.0] * len(answers.y_w), names(answers))


def dpo(answers: Answers, loss: str, beta: float, *, soft: bool = False, **options: float | bool) -> Task:
    """The project's DPO. `soft`: the share of votes is the pair's preference."""
    none = dict.fromkeys((field.name for field in dataclasses.fields(LossOptions)), None)
    preference = Preference(loss, beta, LossOptions(**(none | options)), {})

    def forward(head: nn.Module, rows: Sequence[int], epoch: int | None) -> Any:
        chunk = list(rows)
        logps = logps_of(head, answers.features[chunk])
        batch = pair_batch(logps, answers.ref_logps[chunk], answers.y_w[chunk], answers.y_l[chunk])
        return batch._replace(preference=answers.share[chunk]) if soft else batch

    return Task(forward, preference, [1.0] * len(answers.y_w), names(answers))


def logps_of(head: nn.Module, features: Tensor) -> Tensor:
    return head(features).log_softmax(1)


def names(answers: Answers) -> list[str]:
    return [f"answer {i}" for i in range(len(answers.y_w))]


@dataclass(frozen=True)
class Arm:
    """A way to learn from answers: `task(answers, scale)`, where scale is beta, or what else is tried beside the rate."""

    task: Callable[[Answers, float], Task]
    tries: Sequence[tuple[float, float]]  # learning rate and scale


def labels(answers: Answers, _: float) -> Task:
    """y_w as a label."""
    return cross_entropy(answers, lambda logps, rows: of_class(logps, answers.y_w[rows]))


def smoothed(answers: Answers, _: float) -> Task:
    """y_w as a label, smoothed over all classes by the share of wrong answers."""
    wrong = answers.wrong
    return cross_entropy(
        answers, lambda logps, rows: (1 - wrong) * of_class(logps, answers.y_w[rows]) + wrong * logps.mean(1)
    )


def votes(answers: Answers, _: float) -> Task:
    """The shares of votes as a target."""

    def target(logps: Tensor, rows: list[int]) -> Tensor:
        share = answers.share[rows]
        return share * of_class(logps, answers.y_w[rows]) + (1 - share) * of_class(logps, answers.y_l[rows])

    return cross_entropy(answers, target)


def corrected(answers: Answers, _: float) -> Task:
    """Forward correction (arXiv:1609.03683, theorem 2): the answer's probability, given how often answers are wrong."""

    def target(logps: Tensor, rows: list[int]) -> Tensor:
        right, wrong = (of_class(logps, y[rows]).exp() for y in (answers.y_w, answers.y_l))
        return ((1 - answers.wrong) * right + answers.wrong * wrong).log()

    return cross_entropy(answers, target)


def bootstrapped(answers: Answers, share: float) -> Task:
    """Bootstrapping (arXiv:1412.6596): the target is the reference's prediction by this share, else y_w."""

    def target(logps: Tensor, rows: list[int]) -> Tensor:
        from_reference = (answers.ref_logps[rows].exp() * logps).sum(1)
        return share * from_reference + (1 - share) * of_class(logps, answers.y_w[rows])

    return cross_entropy(answers, target)


REFERENCE, CONTROL = "reference", "cross-entropy"
TOLD = (
    "cross-entropy, smoothed",
    "cross-entropy, corrected",
    "DPO, smoothed",
    "robust DPO",
)  # the share of wrong answers
ARMS: Mapping[str, Arm] = {
    CONTROL: Arm(labels, RATES),
    "cross-entropy, smoothed": Arm(smoothed, RATES),
    "cross-entropy, corrected": Arm(corrected, RATES),
    "cross-entropy, bootstrapped": Arm(bootstrapped, SHARES),
    "DPO": Arm(lambda answers, beta: dpo(answers, "sigmoid", beta), BETAS),
    "DPO, smoothed": Arm(lambda answers, beta: dpo(answers, "sigmoid", beta, label_smoothing=answers.wrong), BETAS),
    "robust DPO": Arm(lambda answers, beta: dpo(answers, "robust", beta, label_smoothing=answers.wrong), BETAS),
    "IPO": Arm(lambda answers, beta: dpo(answers, "ipo", beta), BETAS),
}
SOFT: Mapping[str, Arm] = {
    "cross-entropy, shares of votes": Arm(votes, RATES),
    "DPO, shares of votes": Arm(lambda answers, beta: dpo(answers, "sigmoid", beta, soft=True), BETAS),
}
WHOLE = (CONTROL, "cross-entropy, corrected", "DPO")


@dataclass(frozen=True)
class Setting:
    """Who is asked what, and what the reference was trained on."""

    kind: str  # of the two classes
    wrong: Sequence[float]  # the share of wrong answers of each person
    same: bool = False  # the reference was trained on these answers as labels, not on the trusted images
    whole: bool = False  # the arms train the whole network


SETTINGS: Mapping[str, Setting] = {
    "top two, 40% wrong": Setting("top two", (0.4,)),
    "random, 40% wrong": Setting("random", (0.4,)),
    "top two, 40% wrong, whole network": Setting("top two", (0.4,), whole=True),
    "top two, five annotators": Setting("top two", ANNOTATORS),
    "top two, 0% wrong": Setting("top two", (0.0,)),
    "random, 40% wrong, reference trained on them": Setting("random", (0.4,), same=True),
    "top two, 20% wrong": Setting("top two", (0.2,)),
}


def arms_of(setting: Setting) -> Mapping[str, Arm]:
    """The arms that make sense: nothing is to correct where no answer is wrong, and one person's votes are no shares.

    The whole network, which costs four times as much, is for few of them.
    """
    if setting.whole:
        return {name: ARMS[name] for name in WHOLE}
    wrong = any(setting.wrong)
    blind = {name: arm for name, arm in ARMS.items() if wrong or name not in TOLD}
    return blind | SOFT if len(setting.wrong) > 1 else blind


# The measurement


class Trained(NamedTuple):
    """A classifier as its frozen part, which makes features, and the part that is trained."""

    frozen: nn.Module
    trained: nn.Module


def parts(model: nn.Module, *, whole: bool) -> Trained:
    """The first three blocks of a ResNet, and the fourth with the head; or nothing, and the `whole` of it.

    In eval mode: batch statistics stay.
    """
    if whole:
        return Trained(nn.Identity(), model.eval())
    blocks: list[Any] = [getattr(model, f"layer{i}") for i in (1, 2, 3)]
    first = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, *blocks)  # type: ignore[arg-type]
    last = nn.Sequential(model.layer4, model.avgpool, nn.Flatten(), model.fc)  # type: ignore[arg-type]
    return Trained(first.eval(), last.eval())


@torch.no_grad()
def features_of(frozen: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([frozen(normalise(part)) for part in images.split(250)])


def train(model: nn.Module, task: Task, config: "Training", seed: int) -> None:
    """Train in place, without validation and checkpoints."""
    fitted(model, Tasks(task, None), unwatched(config), seed)


def splits_of(folder: Path, params: "Params", seed: int) -> dict[str, ImagePairs]:
    """The splits of this seed. The training split is in random order."""
    from prefdag.image.data import load_splits
    from prefdag.image.label_pairs import label_pairs
    from prefdag.runtime.artifacts import read_json, read_table, read_tensors

    images = folder / "data/validated/images"
    labels = read_tensors(images / "images.safetensors", "numpy")["labels"]
    _, groups = np.unique(read_table(images / "rows.parquet")["perceptual"].to_pylist(), return_inverse=True)
    classes = len(read_json(images / "classes.json"))
    with tempfile.TemporaryDirectory() as pairs:
        table = label_pairs(labels, groups, classes, replace(params.label_pairs, seed=seed))
        pq.write_table(table, Path(pairs) / "pairs.parquet")
        splits = load_splits(images, Path(pairs))
    order = np.random.default_rng(seed).permutation(len(splits["train"]))
    return splits | {"train": part(splits["train"], order)}


def part(split: ImagePairs, rows: Any) -> ImagePairs:
    """Some rows of a split, in this order."""
    chosen = torch.as_tensor(np.asarray(rows))
    return ImagePairs([split.index[i] for i in chosen], *(t[chosen] for t in (split.images, split.y_w, split.y_l)))


def warmed_up(split: ImagePairs, epochs: int, params: "Params", seed: int) -> nn.Module:
    """The stage resnet_warmup on these labels, in memory."""
    from prefdag.image.classification_task import classification_task

    config = params.resnet_warmup
    classes, channels = int(split.y_w.max()) + 1, split.images.shape[1]
    torch.manual_seed(seed)
    model = resnet.build(resnet.Architecture(config.arch, config.stem, config.dropout, channels, classes)).train()
    augment = Augmentation(config.max_shift, config.flip, seed)
    train(model, classification_task(split, augment), replace(config.training, epochs=epochs), seed)
    return model.eval()


class Start(NamedTuple):
    """Where the arms start: the reference, the answers, and the features and true classes of the held-out splits."""

    reference: nn.Module
    answers: Answers
    held_out: Mapping[str, tuple[Tensor, Tensor]]


def start(
    setting: Setting,
    splits: Mapping[str, ImagePairs],
    params: "Params",
    seed: int,
    sizes: Sizes,
    warm: dict[int, nn.Module],
) -> Start:
    """Warm the reference up, and ask people about the other images."""
    rng = np.random.default_rng([seed, *(round(100 * wrong) for wrong in setting.wrong)])
    trusted = part(splits["train"], range(sizes.trusted))
    others = part(splits["train"], range(sizes.trusted, sizes.trusted + sizes.asked))
    classes = int(splits["test"].y_w.max()) + 1

    def ask(ref_logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return answered(*asked(setting.kind, others.y_w, ref_logps, rng), setting.wrong, rng)

    said = ask(torch.zeros(len(others), classes)) if setting.same else None
    if said:
        trained = warmed_up(replace(others, y_w=said[0]), min(SAME_EPOCHS, sizes.epochs), params, seed)
    else:
        if seed not in warm:
            warm[seed] = warmed_up(trusted, min(WARMUP_EPOCHS, sizes.epochs), params, seed)
        trained = warm[seed]
    model = parts(trained, whole=setting.whole)
    features = features_of(model.frozen, others.images)
    with torch.no_grad():
        ref_logps = logps_of(model.trained, features)
    answers = Answers(features, ref_logps, *(said or ask(ref_logps)), wrong_votes(setting.wrong))
    held_out = {name: (features_of(model.frozen, splits[name].images), splits[name].y_w) for name in ("val", "test")}
    return Start(model.trained, answers, held_out)


def measure(model: nn.Module, features: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy, calibration error and cross-entropy, as the stage evaluate_image computes them."""
    with torch.no_grad():
        logps = logps_of(model, features)
    table = pd.DataFrame(
        {"label": truth.tolist(), "policy": logps.argmax(1).tolist(), "policy_confidence": logps.amax(1).exp().tolist()}
    )
    return {
        "accuracy": float((table["policy"] == table["label"]).mean()),
        "calibration_error": evaluate.calibration_error(evaluate.reliability(table, "policy")),
        "cross_entropy": -float(of_class(logps, truth).double().mean()),
    }


def run(folder: Path, results: Path = RESULTS, sizes: Sizes = SIZES) -> None:
    """Run everything that is not in `results` yet."""
    from prefdag.check_params import load_params

    torch.set_num_threads(1)
    params = load_params(folder / "params.yaml")
    warm: dict[int, nn.Module] = {}  # the references of trusted images, by seed
    for (name, setting), seed in product(SETTINGS.items(), SEEDS):
        missing = {arm: how for arm, how in arms_of(setting).items() if not len(rows_of(results, name, arm, seed))}
        if not missing and len(rows_of(results, name, REFERENCE, seed)):
            continue
        begun = start(setting, splits_of(folder, params, seed), params, seed, sizes, warm)
        common = {"setting": name, "seed": seed, "n": len(begun.held_out["test"][1])}
        if not len(rows_of(results, name, REFERENCE, seed)):
            append(results, {**common, "arm": REFERENCE, **measure(begun.reference, *begun.held_out["test"])}, COLUMNS)
        for arm, how in missing.items():
            trained = {}
            for rate, scale in how.tries if seed == SEEDS[0] else [chosen(results, name, arm)]:
                model = copy.deepcopy(begun.reference)
                config = replace(params.dpo_image.training, epochs=min(EPOCHS, sizes.epochs), learning_rate=rate)
                train(model, how.task(begun.answers, scale), config, seed)
                val = measure(model, *begun.held_out["val"])["cross_entropy"]
                trained[rate, scale] = val, model
            best = min(trained, key=lambda settings: trained[settings][0])
            tried = [{"learning_rate": r, "scale": s, "val_cross_entropy": v} for (r, s), (v, _) in trained.items()]
            tried.sort(key=lambda row: (row["learning_rate"], row["scale"]) == best)  # the chosen one is the last
            for row in tried[:-1]:
                append(results, {**common, "arm": arm, **row}, COLUMNS)
            measured = measure(trained[best][1], *begun.held_out["test"])
            append(results, {**common, "arm": arm, **tried[-1], **measured}, COLUMNS)


COLUMNS = ["setting", "seed", "arm", "learning_rate", "scale", "val_cross_entropy", "n"]
COLUMNS += list(MEASURES := ("accuracy", "calibration_error", "cross_entropy"))


def rows_of(results: Path, setting: str, arm: str, seed: int) -> pd.DataFrame:
    """The rows that were measured on the test split: one, or none."""
    if not results.exists():
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.read_csv(results)
    same = (rows["setting"] == setting) & (rows["arm"] == arm) & (rows["seed"] == seed)
    return rows[same & rows["accuracy"].notna()]


def chosen(results: Path, setting: str, arm: str) -> tuple[float, float]:
    """The settings that the first seed chose."""
    row = rows_of(results, setting, arm, SEEDS[0]).iloc[0]
    return float(row["learning_rate"]), float(row["scale"])


# The tables


def table(results: Path = RESULTS) -> str:
    """A table per setting: means over seeds with 95% t intervals, and accuracies minus those of the same seed's control."""
    rows = pd.read_csv(results).dropna(subset="accuracy")
    lines: list[str] = []
    for name, of_setting in rows.groupby("setting", sort=False):
        by_arm = {arm: part.set_index("seed") for arm, part in of_setting.groupby("arm", sort=False)}
        lines += [f"**{name}**", "", HEADING, "|---" * HEADING.count(" |") + "|"]
        for arm, part in by_arm.items():
            difference = 100 * (part["accuracy"] - by_arm[CONTROL]["accuracy"]).dropna()
            cells = [
                arm,
                spread(100 * part["accuracy"], ".1f"),
                "" if arm == CONTROL else spread(difference, "+.1f"),
                spread(part["calibration_error"], ".3f"),
                spread(part["cross_entropy"], ".3f"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


HEADING = "| arm | accuracy, % | points above cross-entropy | calibration error | cross-entropy |"


def spread(values: "pd.Series[float]", digits: str) -> str:
    """Mean and 95% interval over seeds."""
    low, high = mean(values.tolist())
    return f"{values.mean():{digits}} ({low:{digits}} to {high:{digits}})"


if __name__ == "__main__":
    run_or_table(__doc__ or "", run, table, "folder")
