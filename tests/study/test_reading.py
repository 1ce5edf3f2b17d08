"""What a participant may name: every address, in every field of every method."""

import mlflow
import pytest

from compression import methods, params, tracking
from compression.errors import UserError
from compression.runs.settings import Settings
from compression.study import participant_runs, reading
from compression.study.web.launch import RUN_SETTINGS, parse_recipe
from tests.study.conftest import join

# What the help of a field says where it takes an address.
ADDRESS_WORDS = ("runs:/", "models:/", "folder", "hub name", "models that", "models with", "data set and metric")
NOBODYS_RUN = "0" * 32
FORBIDDEN = (
    *("/etc/passwd", "/", "~", "~/x", ".", "..", "../x", "./x", "a/../../x", "home", "home/study.db", "a/b/c", "a//b"),
    *("file:///etc/passwd", "http://127.0.0.1:1/x", "https://evil.example/x", "s3://bucket/x", "ftp://x", "dbfs:/x"),
    *("mlflow-artifacts:/0/x", "RUNS:/" + NOBODYS_RUN, f"runs:/{NOBODYS_RUN}/../x", f" runs:/{NOBODYS_RUN}", "runs:/"),
    *("runs:/x", "runs:/../../x", "runs:/%2e%2e/%2e%2e/study.db", "runs://host/x", f"runs:/{NOBODYS_RUN}/", "models:/"),
    *("models:/x", "models:/m-123", "models:/../x/1", "@/etc/passwd", "os:getcwd", "mine.py:make", "./mine.py:make"),
    *("hub/../../x", "hub//x", "a\\b", "C:\\x", "a b", "a\nb", "é"),
)
UNKNOWN = (f"runs:/{NOBODYS_RUN}", f"runs:/{NOBODYS_RUN}/model", "models:/x/1", "models:/x@best")  # MLflow is asked


@pytest.fixture
def gate(session):
    """The gate of p01; of p02 there is a model in the store."""
    for id in ("p01", "p02"):
        join(session, id)
    session.commit()
    return reading.ParticipantGate("p01", frozenset(["digits", "/models/of/the/researcher"]))


def run_in(experiment, **tags):
    """The id of a finished run in an experiment."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    run = client.create_run(found.experiment_id if found else client.create_experiment(experiment), tags=tags)
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def holders():
    return [Settings, *(methods.method(name) for name in methods.METHODS)]


def test_every_field_that_takes_an_address_says_so_by_its_type():
    for holder in holders():
        for name, field in params.fields(holder).items():
            told = any(word in field.param.help for word in ADDRESS_WORDS)
            assert field.kind.place == told, f"{holder.__name__}.{name}: {field.param.help}"


@pytest.mark.parametrize("holder", holders(), ids=lambda holder: holder.__name__)
def test_no_address_gets_through_any_field(gate, holder, place):
    for name, field in params.fields(holder).items():
        if field.kind.place:
            for address in FORBIDDEN:
                value = ("resnet20", address) if field.kind.container else address
                with pytest.raises(UserError):
                    reading.check_addresses(holder(**{name: value}), gate)


def test_what_mlflow_does_not_have_is_not_there_to_be_read(gate, place):
    for address in UNKNOWN:
        with pytest.raises(UserError):
            gate("teacher", address)


def test_names_of_the_lab_and_the_hub_and_what_is_assigned_are_let_through(gate):
    for address in (
        "resnet20",
        "digits",
        "glue/sst2",
        "hub/owner/name",
        "bert-base-uncased",
        "google/bert_uncased-L-2",
    ):
        assert gate("model", address) == address
    assert gate("baseline", "/models/of/the/researcher") == "/models/of/the/researcher"
    step = methods.parse("progressive:assistants=0.5//6//resnet8,student=resnet8")[0]
    assert reading.check_addresses(step, gate) == step
    settings = Settings(task="digits", model="resnet20", limit=5)
    assert reading.check_addresses(settings, gate) == settings


def test_a_run_is_read_by_whose_it_is_and_not_by_what_it_says(gate, place):
    own, claimed, theirs = run_in("p01", participant="p01"), run_in("p02", participant="p01"), run_in("p02")
    shared, other = run_in("Default", stage="train"), run_in("Default", stage="compress", participant="p02")
    for run in (own, shared):
        assert gate("teacher", f"runs:/{run}/model") == f"runs:/{run}/model"
    for run in (claimed, theirs, other):
        with pytest.raises(UserError, match="it is no model of a run of yours"):
            gate("teacher", f"runs:/{run}/model")


def test_a_registered_model_is_named_by_its_run_so_that_it_stays_what_was_checked(gate, place):
    client = mlflow.MlflowClient()
    client.create_registered_model("small")
    own, theirs = run_in("p01", participant="p01"), run_in("p02", participant="p02")
    files = {run: client.get_run(run).info.artifact_uri for run in (own, theirs)}
    client.create_model_version("small", f"{files[own]}/model", own)
    client.set_registered_model_alias("small", "best", "1")
    assert gate("baseline", "models:/small/1") == gate("baseline", "models:/small@best") == f"runs:/{own}/model"
    # A version may say that it is of a run, and have the files of another.
    for source, run in ((files[theirs], own), (files[theirs], theirs), (f"{files[own]}/../../{theirs}/artifacts", own)):
        version = client.create_model_version("small", f"{source}/model", run).version
        with pytest.raises(UserError, match="it is no model of a run of yours"):
            gate("baseline", f"models:/small/{version}")


def test_a_run_that_is_started_finds_no_baseline_of_others(gate, place, monkeypatch):
    tags = {"stage": "train", "task": "digits", "model": "mlp", "data_digest": "x"}
    run_in("p02", participant="p02", **tags)
    assert tracking.find_baseline("digits", "mlp", "x")
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    assert tracking.find_baseline("digits", "mlp", "x") is None
    own = run_in("p01", participant="p01", **tags)
    assert tracking.find_baseline("digits", "mlp", "x") == own


def test_a_recipe_is_bounded_and_read_from_no_file(gate, place):
    (place / "mine.yaml").write_text("- static\n")
    for text in ("@mine.yaml", "@/etc/passwd", " @mine.yaml", "/etc", "../x", "~/x"):
        with pytest.raises(UserError, match="cannot name a file of the server"):
            parse_recipe(text, gate)
    for text in ("+".join(["static"] * 40_000), "svd+" * 20 + "static", "response:teacher=" + "x" * 4000):
        with pytest.raises(UserError, match="at most 20 steps and 4000 characters"):
            parse_recipe(text, gate)
    assert len(parse_recipe("@mine.yaml", reading.OpenGate())) == 1


def test_the_form_has_no_field_beyond_what_the_server_leaves_open():
    assert {"participant", "experiment", "data", "resume", "device"}.isdisjoint(RUN_SETTINGS)


def test_in_a_store_without_logins_an_experiment_of_another_participant_is_theirs(session, place):
    for id, login in (("p01", "ada"), ("p02", "bob")):
        join(session, id, login=login)
    session.commit()
    kept = [run_in(name, participant="p01") for name in ("Default", "p01", "ada", "notes of mine")]
    for name in ("p02", "bob"):
        run_in(name, participant="p01")
    assert {run.id for run in participant_runs.load_runs("p01")} == set(kept)
