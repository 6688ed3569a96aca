"""Give every image a pair of classes, the true one and a seeded other one, and split the images class by class."""

from pathlib import Path

import pyarrow.parquet as pq
from safetensors import safe_open

from prefdag.artifacts import read_json, writing
from prefdag.config import LabelPairs
from prefdag.data.pairs import label_pairs as pair_labels
from prefdag.stage import stage

IMAGES = Path("data/validated/images")
OUT = Path("data/image_pairs")


@stage
def main(label_pairs: LabelPairs) -> None:
    with safe_open(IMAGES / "images.safetensors", framework="np") as file:
        labels = file.get_tensor("labels")
    pairs = pair_labels(labels, len(read_json(IMAGES / "classes.json")), label_pairs)
    with writing(OUT) as folder:
        folder.mkdir()
        pq.write_table(pairs, folder / "pairs.parquet")


if __name__ == "__main__":
    main.run()
