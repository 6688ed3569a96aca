"""Give every image a pair of classes, its label and a random other one, and split the images, stratified by class."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from prefdag.config.label_pairs import LabelPairs
from prefdag.image.label_pairs import check_published, published_summary, split_summary
from prefdag.image.label_pairs import label_pairs as pair_labels
from prefdag.runtime.artifacts import read_json, read_table, read_tensors, write_json, writing
from prefdag.runtime.stage import stage

IMAGES = Path("data/validated/images")
OUT = Path("data/image_pairs")


@stage
def main(label_pairs: LabelPairs) -> None:
    labels = read_tensors(IMAGES / "images.safetensors", "numpy")["labels"]
    classes = read_json(IMAGES / "classes.json")
    rows = read_table(IMAGES / "rows.parquet")
    copies = rows.select(["exact", "perceptual"])
    published = rows["split"].to_pylist() if "split" in rows.column_names else None
    _, groups = np.unique(copies["perceptual"].to_pylist(), return_inverse=True)  # they include exact copies
    if published:
        check_published(labels, published, classes)
    pairs = pair_labels(labels, groups, len(classes), label_pairs, published)
    with writing(OUT) as folder:
        folder.mkdir()
        pq.write_table(pairs, folder / "pairs.parquet")
        summary = split_summary(pairs, copies, classes)
        if published:
            summary |= (counts := published_summary(published, groups))
            kept = ", ".join(f"{number:,} {split}" for split, number in counts["published"].items())
            print(f"label_pairs: published splits kept: {kept}")
            if counts["left_out"]:
                print(f"label_pairs: left out as copies of images that are held out further: {counts['left_out']:,}")
        write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    main.run()
