"""The Docker engine: whether it answers, has the image and GPUs, with error messages for when it does not."""

from __future__ import annotations

from dataclasses import dataclass

import requests
from docker.errors import DockerException, ImageNotFound

import docker
from compression.errors import UserError, first_line

IMAGE = "model-compression-lab"  # as MLproject names it
TIMEOUT = 10  # seconds that the engine has to answer
COMMIT_LABEL = "compression.commit"  # the image's label with the git commit of its code
BUILD_HINT = "build it with `make image`"
HOST_HINT = "or run with `-b host`, which needs no Docker"


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers."""

    client: docker.DockerClient

    def version(self) -> str:
        """Return the engine's version."""
        return str(self.client.version()["Version"])

    def image_commit(self, image: str) -> str:
        """Return the git commit that `image` was built from; empty if its label is missing.

        Raises UserError if there is no such image.
        """
        try:
            return str(self.client.images.get(image).labels.get(COMMIT_LABEL, ""))
        except ImageNotFound as error:
            raise UserError(f"There is no image {image!r} on this machine; {BUILD_HINT}, {HOST_HINT}.") from error

    def require_gpu(self) -> None:
        """Raise UserError if the engine cannot give a container an NVIDIA GPU."""
        info = self.client.info()
        devices = [device.get("ID", "") for device in info.get("DiscoveredDevices") or []]
        if "nvidia" not in info.get("Runtimes", {}) and not any("nvidia.com/gpu" in device for device in devices):
            raise UserError(
                "The Docker engine has no NVIDIA runtime, so no container gets a GPU; install the driver and the "
                "NVIDIA Container Toolkit, or leave `-A gpus=…` out to run on the processor."
            )

    def kill_container(self, name: str) -> None:
        """Kill the container `name` if it is still running."""
        for container in self.client.containers.list(filters={"name": f"^{name}$"}):
            container.kill()


def connect() -> Engine:
    """Connect to the engine of DOCKER_HOST or of this machine. Raises UserError if none answers."""
    try:
        client = docker.from_env(timeout=TIMEOUT)
        client.ping()
    except (DockerException, requests.RequestException) as error:
        raise UserError(
            f"No Docker engine answers ({first_line(error)}); install Docker, or start it "
            f"(`sudo systemctl start docker`), {HOST_HINT}."
        ) from error
    return Engine(client)
