"""Download the base model from its pinned source, and save it as float32 safetensors with its tokenizer."""

from pathlib import Path
from tempfile import TemporaryDirectory

from prefdag.config.download_model import DownloadModel
from prefdag.runtime import artifacts
from prefdag.runtime.stage import stage
from prefdag.sources.fetching import fetch
from prefdag.text.convert import convert

MODEL = Path("models/base")


@stage
def main(download_model: DownloadModel) -> None:
    with artifacts.writing(MODEL) as folder:
        folder.mkdir()
        with TemporaryDirectory(dir=folder) as fetched:
            fetch(download_model.source, Path(fetched), "download_model.source")
            convert(Path(fetched), folder)


if __name__ == "__main__":
    main.run()
