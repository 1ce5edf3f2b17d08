"""The files that put the lab into containers and clusters agree with each other and with what reads them."""

import copy
import json
import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from mlflow.projects import kubernetes
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from compression.backend import engine

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_conda_and_the_image_install_what_pyproject_names_and_nothing_else():
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    [python] = [line for line in conda if isinstance(line, str) and line.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python.partition('=')[2]}.0")
    [pip] = [line["pip"] for line in conda if isinstance(line, dict)]
    assert pip == ["--editable .[all]"]
    image = (ROOT / "docker/packages.sh").read_text()
    assert "--requirements /build/pyproject.toml --extra all" in image
    [backend] = re.findall(r"--extra all '(.*)'", image)
    assert backend in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]


def test_every_package_that_was_asked_for_is_a_dependency():
    everything = Requirement(EXTRAS["all"][0]).extras
    listed = [*PROJECT["dependencies"], *(line for extra in everything for line in EXTRAS[extra])]
    named = {Requirement(line).name for line in listed}
    assert named >= {
        *("mlflow", "torch", "torchvision", "transformers", "datasets", "docker", "click", "optuna", "torch-pruning"),
    }


def test_every_dependency_has_its_reason():
    lines = read("pyproject.toml").partition("\ndependencies = [")[2].partition("[project.scripts]")[0].splitlines()
    listed = [line for line in lines if re.match(r'  "[A-Za-z0-9-]+(\[.*\])?[>=<.,0-9]*",?', line) and "*" not in line]
    assert len(listed) == len(PROJECT["dependencies"]) + sum(map(len, EXTRAS.values()))
    for line in listed:
        assert "# " in line, line


def test_mlproject_and_the_stack_use_the_image_that_make_builds():
    assert yaml.safe_load((ROOT / "MLproject").read_text())["docker_env"]["image"] == engine.IMAGE
    assert f"IMAGE ?= {engine.IMAGE}" in (ROOT / "Makefile").read_text()
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    assert compose["x-lab"]["image"] == f"${{IMAGE:-{engine.IMAGE}}}"
    gpus = yaml.safe_load((ROOT / "docker/compose.gpu.yaml").read_text())
    assert set(gpus["services"]) <= set(compose["services"])


def test_every_secret_of_the_stack_is_empty_in_the_example_and_demanded():
    example = dict(line.split("=", 1) for line in read("docker/.env.example").splitlines() if not line.startswith("#"))
    secrets = [name for name in example if re.search(r"PASSWORD|SECRET|KEY", name)]
    assert len(secrets) == 5
    for name in secrets:
        assert example[name] == ""
        assert f"${{{name}:?" in read("docker/compose.yaml")


def test_nothing_of_the_stack_listens_beyond_this_machine_unless_told():
    for service in yaml.safe_load(read("docker/compose.yaml"))["services"].values():
        assert all(re.match(r"\$\{BIND\w*:-127\.0\.0\.1\}:", port) for port in service.get("ports", []))


def read(path):
    return (ROOT / path).read_text()


@pytest.fixture
def job():
    """The job that MLflow makes of the template for an entry point."""
    config = json.loads(read("docker/kubernetes.json"))
    template = yaml.safe_load((ROOT / config["kube-job-template-path"]).read_text())
    return kubernetes._get_kubernetes_job_definition(
        project_name=yaml.safe_load(read("MLproject"))["name"],
        image_tag=config["repository-uri"],
        image_digest="sha256:" + "0" * 64,
        command=kubernetes._get_run_command(["python entrypoints/distill.py response --task cifar10"]),
        env_vars={"MLFLOW_RUN_ID": "0" * 32, "MLFLOW_TRACKING_URI": "https://mlflow.example.org"},
        job_template=copy.deepcopy(template),
    )


@pytest.mark.parametrize("version", ["1.28", "1.34"])
def test_the_job_for_kubernetes_fits_its_schemas(job, version):
    kubernetes_validate.validate(job, version, strict=True)


def test_the_job_runs_the_entry_point_on_a_gpu_and_takes_secrets_by_reference(job):
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "entrypoints/distill.py", "response", "--task", "cifar10"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    given = {entry["name"]: entry for entry in container["env"]}
    assert given["MLFLOW_RUN_ID"]["value"] == "0" * 32
    assert "secretKeyRef" in given["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]
    assert all("value" not in entry for name, entry in given.items() if re.search("PASSWORD|USERNAME", name))


def test_a_schema_that_does_not_fit_would_be_noticed(job):
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["limit"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.34", strict=True)


def test_mlflow_takes_the_backend_config():
    from mlflow.projects import _parse_kubernetes_config

    config = json.loads(read("docker/kubernetes.json"))
    config["kube-job-template-path"] = str(ROOT / config["kube-job-template-path"])
    assert _parse_kubernetes_config(config)["kube-job-template"]["kind"] == "Job"
