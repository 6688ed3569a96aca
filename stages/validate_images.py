"""Read the raw images and labels into two arrays, and let them through if they pass every expectation."""

from pathlib import Path

from prefdag.artifacts import scratch, writing
from prefdag.config import ValidateImages
from prefdag.data.images import class_rows, image_rows, read_images, write_images
from prefdag.stage import stage

RAW = Path("data/raw/images")
IMAGES = Path("data/validated/images")
REPORT = Path("reports/validation/images")


@stage
def main(validate_images: ValidateImages) -> None:
    from prefdag.data.checks import check, refuse  # seconds of import, not for --help
    from prefdag.data.image_expectations import images_tables

    data = read_images(RAW, validate_images.format)
    with writing(REPORT) as report, writing(IMAGES) as folder:
        tables = images_tables(image_rows(data), class_rows(data), validate_images.max_imbalance)
        offending = check(tables, report)
        if (offending["level"] == "error").any():
            raise refuse(offending, report, scratch("validation", "images"))
        write_images(folder, data)
    warnings = f", {len(offending)} warnings" if len(offending) else ""
    print(f"validate_images: {len(data.labels)} images of {len(data.classes)} classes{warnings}, written to {IMAGES}")


if __name__ == "__main__":
    main.run()
