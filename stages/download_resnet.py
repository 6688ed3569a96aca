"""Fetch pretrained ResNet weights from their pinned source, if params.yaml names one, and detect the architecture."""

from pathlib import Path
from tempfile import TemporaryDirectory

from prefdag.config.download_resnet import DownloadResnet
from prefdag.runtime import artifacts
from prefdag.runtime.stage import stage
from prefdag.sources.fetching import fetch

BASE = Path("models/resnet_base")


@stage
def main(download_resnet: DownloadResnet) -> None:
    arch = None
    with artifacts.writing(BASE) as folder:
        folder.mkdir()
        if download_resnet.source is not None:
            from prefdag.image import model as resnet

            with TemporaryDirectory(dir=folder) as fetched:
                fetch(download_resnet.source, Path(fetched), "download_resnet.source")
                weights = resnet.weights_in(Path(fetched))
                arch = resnet.recognise(weights)
                weights.rename(folder / "model.safetensors")
        artifacts.write_json(folder / "base.json", {"arch": arch})


if __name__ == "__main__":
    main.run()
