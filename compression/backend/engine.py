"""The Docker engine: whether it is there, has the image and GPUs, and the sentence when it does not."""

from __future__ import annotations

from dataclasses import dataclass

import requests
from docker.errors import DockerException, ImageNotFound

import docker
from compression.errors import UserError, first_line

IMAGE = "model-compression-lab"  # as MLproject names it
PATIENCE = 10  # seconds that the engine has to answer
COMMIT = "compression.commit"  # the label that says which code is in the image
BUILD = "build it with `make image`"
WITHOUT = "or run with `-b host`, which needs no Docker"


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers."""

    client: docker.DockerClient

    def version(self) -> str:
        return self.client.version()["Version"]

    def commit_of(self, image: str) -> str:
        """The git commit that `image` was built from, as far as it says; UserError if there is no such image."""
        try:
            return self.client.images.get(image).labels.get(COMMIT, "")
        except ImageNotFound as error:
            raise UserError(f"There is no image {image!r} on this machine; {BUILD}, {WITHOUT}.") from error

    def require_gpu(self) -> None:
        """UserError if a container can be given no NVIDIA GPU."""
        facts = self.client.info()
        devices = [device.get("ID", "") for device in facts.get("DiscoveredDevices") or []]
        if "nvidia" not in facts.get("Runtimes", {}) and not any("nvidia.com/gpu" in device for device in devices):
            raise UserError(
                "The Docker engine has no NVIDIA runtime, so no container gets a GPU; install the driver and the "
                "NVIDIA Container Toolkit, or leave `-A gpus=…` out to run on the processor."
            )

    def stop(self, container: str) -> None:
        """End a container, if it is still there."""
        for found in self.client.containers.list(filters={"name": f"^{container}$"}):
            found.kill()


def engine() -> Engine:
    """The engine of DOCKER_HOST or of this machine; UserError if none answers."""
    try:
        client = docker.from_env(timeout=PATIENCE)
        client.ping()
    except (DockerException, requests.RequestException) as error:
        raise UserError(
            f"No Docker engine answers ({first_line(error)}); install Docker, or start it "
            f"(`sudo systemctl start docker`), {WITHOUT}."
        ) from error
    return Engine(client)
