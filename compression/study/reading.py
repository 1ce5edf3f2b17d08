"""What a participant may name, where runs start and bundles are made with the server's own rights.

Every field that takes an address says so by its type (`params.Place`), so what is asked here holds for the methods of
tomorrow as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from compression import params
from compression.models import MODELS
from compression.study import participant_runs
from compression.study.participant_runs import DEFAULT_EXPERIMENT
from compression.study.texts import StudyError
from compression.tasks import TASKS
from compression.tracking import server
from compression.tracking.lookup import EXPERIMENTS_VARIABLE

Step = TypeVar("Step")

RUN_URI = re.compile(r"runs:/([0-9a-f]{32})((?:/[\w-][\w.-]*)*)", re.ASCII)
MODEL_URI = re.compile(r"models:/([^/@]+)(?:/([0-9]+)|@([\w.-]+))", re.ASCII)
HUB_VARIABLE = "HF_HUB_DISABLE_IMPLICIT_TOKEN"
# One slash at most and no dot in front; a file that is called so, from where the server runs, is refused all the same.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class Gate(Protocol):
    """What one person may read."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for a process that is to read no more, whatever it looks for by itself."""

    def __call__(self, field: str, address: str) -> str:
        """Return the address to use in the field. Raises StudyError for one that this person may not read."""


@dataclass(frozen=True)
class OpenGate:
    """The gate of somebody at their own machine, who may read what the process may."""

    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, field: str, address: str) -> str:  # noqa: ARG002
        """Return the address."""
        return address


@dataclass(frozen=True)
class ParticipantGate:
    """The gate of a participant: names of the lab and the hub, models of their own runs, what their assignment names.

    Also models that somebody trained in the default experiment, where only administrators of the server write. No
    folder or file of the server, no address of a network, no run of somebody else.
    """

    participant_id: str
    assigned: frozenset[str]  # the researcher chose these: any address may be among them

    def __call__(self, field: str, address: str) -> str:
        """Return the address to use. Raises StudyError unless the participant may read it."""
        if address in self.assigned or address in MODELS or address in TASKS:
            return address
        if address.startswith("runs:/"):
            return self._check_run(field, address)
        if address.startswith("models:/"):
            return self._check_run(field, _run_of_version(field, address))
        name = address.removeprefix("hub/")  # of a task
        if not HUB_NAME.fullmatch(name) or Path(name).exists():
            raise StudyError("no_server_files", name=field)
        return address

    def _check_run(self, field: str, uri: str) -> str:
        match = RUN_URI.fullmatch(uri)
        if not match or not participant_runs.may_read(self.participant_id, match[1]):
            raise StudyError("not_your_model", name=field, address=uri[:100])
        return uri

    @property
    def environment(self) -> dict[str, str]:
        """A run that is started has the server's rights at MLflow and the hub, and looks for a baseline by itself."""
        own = participant_runs.find_experiments(self.participant_id).own
        return {
            EXPERIMENTS_VARIABLE: "\n".join([*own, DEFAULT_EXPERIMENT]),
            # The server's account at the hub may read what is private, unless the researcher says that all may.
            HUB_VARIABLE: os.environ.get(HUB_VARIABLE, "1"),
        }


def _run_of_version(field: str, uri: str) -> str:
    """Return runs:/… of a registered model: its owner may let the name mean another model at any time.

    A version claims a run, but what is downloaded is its source: that has to lie among the run's own files.
    """
    refusal = StudyError("not_your_model", name=field, address=uri[:100])
    match = MODEL_URI.fullmatch(uri)
    if not match:
        raise refusal
    name, number, alias = match.groups()
    with server.checked_client(f"find {uri}") as client:
        version = client.get_model_version(name, number) if number else client.get_model_version_by_alias(name, alias)
        files = client.get_run(version.run_id).info.artifact_uri if version.run_id else None
    source = version.source or ""
    if not files or not source.startswith(f"{files}/"):
        raise refusal
    return f"runs:/{version.run_id}/{source.removeprefix(f'{files}/')}"


def check_addresses(holder: Step, gate: Gate) -> Step:
    """Return `holder` (a dataclass with described fields) with the addresses that `gate` gives for those in it.

    Raises StudyError where the gate does.
    """
    found: Any = holder
    places = [field.name for field in params.fields(type(found)).values() if field.kind.place]
    values = params.values(found)
    return cast("Step", replace(found, **{name: _each(values[name], partial(gate, name)) for name in places}))


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Return `value`, a text or a container of texts, with `change` applied to each text that is not empty."""
    if isinstance(value, str):
        return change(value) if value else value
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    return value if value is None else tuple(_each(item, change) for item in value)
