"""Train a reward model on the pairs, as a judge, if params.yaml says so, and publish how it ranks held-out pairs."""

from pathlib import Path

from prefdag.config.reward_model import RewardModel
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import read_json, write_json, writing
from prefdag.runtime.stage import distributed_stage
from prefdag.text.evaluation.chance import HELDOUT

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
MODEL = Path("models/reward_model")
FIGURES = Path("reports/text/reward_model.json")


@distributed_stage
def main(reward_model: RewardModel) -> None:
    if reward_model.train:
        train(reward_model)
    elif rank() == 0:
        with writing(MODEL) as folder:
            write_json(folder / HELDOUT, None)
    if rank() == 0:
        with writing(FIGURES) as path:
            write_json(path, read_json(MODEL / HELDOUT))


def train(config: RewardModel) -> None:
    from prefdag.lifecycle.errors import DataError
    from prefdag.text import reward_model as model
    from prefdag.text.scoring.rows import read_split
    from prefdag.train.session import Output, train_stage
    from prefdag.train.task import Tasks

    network = model.new_reward_network(REFERENCE, config)
    splits = {split: model.with_both(read_split(PAIRS, split)) for split in ("train", "val", "test")}
    for split, pairs in splits.items():
        path = f"{PAIRS / split}.parquet"
        if not len(pairs):
            raise DataError(f"{path}: no pair with two responses to learn from; set reward_model.train to false")
        model.check_lengths(pairs, network, path)

    def save(folder: Path) -> None:
        model.save(network, folder, REFERENCE)
        write_json(folder / HELDOUT, model.heldout(folder, splits["test"]))

    tasks = Tasks(model.reward_task(splits["train"]), model.reward_task(splits["val"]))
    train_stage(network, tasks, config.training, config.seed, Output(MODEL, save))


if __name__ == "__main__":
    main.run()
