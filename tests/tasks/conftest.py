"""Every test here has a cache of its own and no data but what it makes."""

import pytest
from huggingface_hub import constants


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch, point_at):
    monkeypatch.setenv("COMPRESSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMPRESSION_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    point_at("http://127.0.0.1:9")  # the discard port: nobody listens


@pytest.fixture
def point_at(monkeypatch):
    """`point_at(endpoint)` does what HF_ENDPOINT does when Python starts."""

    def point(endpoint):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point
