"""Read the raw images and labels into two arrays, check them, and write those that pass."""

from pathlib import Path

import pandas as pd

from prefdag.config.validate_images import ValidateImages
from prefdag.gate.image_rows import COPIES, class_rows, image_rows, images_summary, unreadable_first
from prefdag.images.labelled import select
from prefdag.images.reading import read_images, write_images
from prefdag.runtime.artifacts import scratch, write_json, writing
from prefdag.runtime.stage import stage

RAW = Path("data/raw/images")
IMAGES = Path("data/validated/images")
REPORT = Path("reports/validation/images")


@stage
def main(validate_images: ValidateImages) -> None:
    from prefdag.gate.checks import Table, check, refuse
    from prefdag.gate.image_expectations import classes_table, images_table

    data = read_images(RAW, validate_images.format)
    for line in data.notes.lines():
        print(f"validate_images: {line}")
    rows, noise = image_rows(data, validate_images.similarity, validate_images.min_judge_accuracy)

    def bad(offending: pd.DataFrame) -> "pd.Series[bool]":
        return rows["source"].isin(offending["source"][offending["level"] == "drop"])

    def classes(offending: pd.DataFrame) -> Table:
        kept = ~bad(offending)[rows["fault"].isna()].to_numpy()
        return classes_table(class_rows(data.labels[kept], data.classes), validate_images.max_imbalance)

    with writing(REPORT) as report, writing(IMAGES) as folder:
        offending = check([images_table(rows, len(data.classes), validate_images.levels), classes], report)
        dropped = bad(offending)
        too_many = dropped.mean() > validate_images.max_dropped
        if (offending["level"] == "error").any() or too_many:
            why = f"; {dropped.sum()} of {len(rows)} images exceed validate_images.max_dropped" if too_many else ""
            named, empty = unreadable_first(offending)
            raise refuse(named, report, scratch("validation", "images"), empty + why)
        kept = ~dropped[rows["fault"].isna()]
        written = select(data, kept.to_numpy())
        write_images(folder, written, rows.loc[kept.index[kept], COPIES])
        write_json(report / "summary.json", images_summary(rows, noise, written))
    counts = f"{len(rows)} images read, {dropped.sum()} dropped, {kept.sum()} in {len(data.classes)} classes"
    print(f"validate_images: {counts} written to {IMAGES}")


if __name__ == "__main__":
    main.run()
