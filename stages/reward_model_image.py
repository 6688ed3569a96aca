"""Train a linear reward model on the classifier's features, if params.yaml says so, and publish how it ranks test pairs."""

from pathlib import Path

from prefdag.config.reward_model_image import RewardModelImage
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import stage

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
FIGURES = Path("reports/image/reward_model.json")


@stage
def main(reward_model_image: RewardModelImage) -> None:
    figures = None
    if reward_model_image.train:
        from prefdag.image import reward_model
        from prefdag.image.data import load_splits
        from prefdag.image.model import load
        from prefdag.stats import reward_model as statistics

        splits = load_splits(IMAGES, PAIRS)
        classifier, architecture = load(REFERENCE)
        train, test = splits["train"], splits["test"]
        x = reward_model.features(classifier, train.images)
        model = reward_model.fit(x, train, architecture.classes, reward_model_image.l2)
        x = reward_model.features(classifier, test.images)
        chosen, rejected = model(x, test.y_w).cpu(), model(x, test.y_l).cpu()
        figures = statistics.figures(chosen, rejected, chosen.new_ones(len(chosen)))
    with writing(FIGURES) as path:
        write_json(path, figures)


if __name__ == "__main__":
    main.run()
