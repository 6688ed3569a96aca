"""Give every image a pair of classes, its label and a random other one, and split the images, stratified by class."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from prefdag.config.label_pairs import LabelPairs
from prefdag.images.label_pairs import label_pairs as pair_labels
from prefdag.images.label_pairs import split_summary
from prefdag.runtime.artifacts import read_json, write_json, writing
from prefdag.runtime.stage import stage

IMAGES = Path("data/validated/images")
OUT = Path("data/image_pairs")


@stage
def main(label_pairs: LabelPairs) -> None:
    with safe_open(IMAGES / "images.safetensors", framework="np") as file:
        labels = file.get_tensor("labels")
    classes = read_json(IMAGES / "classes.json")
    copies = pq.read_table(IMAGES / "rows.parquet", columns=["exact", "perceptual"])
    _, groups = np.unique(copies["perceptual"].to_pylist(), return_inverse=True)  # they include exact copies
    pairs = pair_labels(labels, groups, len(classes), label_pairs)
    with writing(OUT) as folder:
        folder.mkdir()
        pq.write_table(pairs, folder / "pairs.parquet")
        write_json(folder / "summary.json", split_summary(pairs, copies, classes))


if __name__ == "__main__":
    main.run()
