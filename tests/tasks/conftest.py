"""Every test here has its own cache, and no data but what it generates."""

import pytest
from datasets import config
from huggingface_hub import constants


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch, point_at):
    monkeypatch.setenv("COMPRESSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMPRESSION_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(config, "USE_PARQUET_EXPORT", False)  # it is on another server than the endpoint
    monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", False)  # these are, too
    point_at("http://127.0.0.1:9")  # the discard port: nobody listens


@pytest.fixture
def point_at(monkeypatch):
    """`point_at(endpoint)` does what HF_ENDPOINT does when Python starts."""

    def point(endpoint):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(config, "HF_ENDPOINT", endpoint)
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point
