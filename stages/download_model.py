"""Download the base model from its pinned source, and save it as float32 safetensors with its tokenizer.

An adapter, if `download_model.adapter` names one, is merged into it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from prefdag.config.download_model import DownloadModel
from prefdag.runtime import artifacts
from prefdag.runtime.stage import torch_stage
from prefdag.sources.fetching import fetch
from prefdag.text.convert import convert
from prefdag.text.merge import merge

MODEL = Path("models/base")


@torch_stage
def main(download_model: DownloadModel) -> None:
    with artifacts.writing(MODEL) as folder:
        folder.mkdir()
        with TemporaryDirectory(dir=folder) as fetched:
            source, adapter = Path(fetched, "source"), Path(fetched, "adapter")
            fetch(download_model.source, source, "download_model.source")
            if download_model.adapter:
                fetch(download_model.adapter, adapter, "download_model.adapter")
            convert(source, folder)
            if download_model.adapter:
                merge(adapter, source, folder)


if __name__ == "__main__":
    main.run()
