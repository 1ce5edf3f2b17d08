"""Runs whose process died with metrics to deliver, and ways to damage what they left."""

import json
import os
import time

from compression.tracking import run_folder
from compression.tracking.server import tracking_uri

STEPS = range(5)


def dead_run(client, name=""):
    """A run at the server, RUNNING, whose process left five metrics; return its folder."""
    made = client.create_run("0", run_name=name)
    folder = run_folder(made.info.run_id)
    folder.mkdir(parents=True)
    metadata = {"uri": tracking_uri(), "id": made.info.run_id, "experiment": "0", "began": time.time() - 60}
    (folder / "run.json").write_text(json.dumps(metadata))
    entries = [{"metric": "m", "value": float(n), "step": n, "at": time.time_ns() // 10**6} for n in STEPS]
    (folder / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "lock").touch()
    return folder


def state(client, run_id):
    """The run's status, and the steps of its metric."""
    found = client.get_run(run_id)
    return found.info.status, sorted(point.step for point in client.get_metric_history(run_id, "m"))


def line(text):
    """Damage that puts `text` in the place of the third line."""

    def damage(folder):
        lines = (folder / "journal.jsonl").read_bytes().splitlines()
        lines[2] = text.encode() if isinstance(text, str) else text
        (folder / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    return damage


def file(name, content):
    """Damage that replaces a file's content; None deletes it, and an empty dict makes it a folder."""

    def damage(folder):
        path = folder / name
        path.unlink(missing_ok=True)
        if content == {}:
            path.mkdir()
        elif content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def metadata(**changes):
    """Damage that changes fields of `run.json`; `...` deletes one."""

    def damage(folder):
        content = json.loads((folder / "run.json").read_text()) | changes
        content = {name: value for name, value in content.items() if value is not ...}
        (folder / "run.json").write_text(json.dumps(content))

    return damage


def journal(change):
    """Damage that changes the journal's bytes."""

    def damage(folder):
        path = folder / "journal.jsonl"
        path.write_bytes(change(path.read_bytes()))

    return damage


def link(folder):
    """An artifact that is a link to a file outside of the folder."""
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "x").symlink_to("/etc/hostname")
    line('{"artifact": "x"}')(folder)


def pipe(folder):
    """An artifact that is a pipe, which nobody writes to."""
    (folder / "artifacts").mkdir()
    os.mkfifo(folder / "artifacts" / "x")
    line('{"artifact": "x"}')(folder)


ALL, NOT_THE_THIRD = [0, 1, 2, 3, 4], [0, 1, 3, 4]

# Damage to everything but the entries: all of them arrive.
WHOLE = {
    "run.json empty": file("run.json", ""),
    "run.json missing": file("run.json", None),
    "run.json a folder": file("run.json", {}),
    "run.json a list": file("run.json", "[]"),
    "run.json deep": file("run.json", "[" * 100_000),
    "run.json not UTF-8": file("run.json", b"\xff\xfe"),
    "run.json began missing": metadata(began=...),
    "run.json began text": metadata(began="yesterday"),
    "run.json began null": metadata(began=None),
    "run.json began infinite": metadata(began=float("inf")),
    "run.json id missing": metadata(id=...),
    "run.json id empty": metadata(id=""),
    "run.json id number": metadata(id=5),
    "run.json uri null": metadata(uri=None),
    "run.json make damaged": metadata(make={"tags": []}),
    "delivered empty": file("delivered", ""),
    "delivered text": file("delivered", "abc"),
    "delivered past the end": file("delivered", "999999"),
    "delivered huge": file("delivered", "9" * 5000),
    "delivered too large for a file": file("delivered", "9" * 30),
    "delivered negative": file("delivered", "-5"),
    "delivered within a line": file("delivered", "7"),
    "delivered not UTF-8": file("delivered", b"\xff"),
    "lock missing": file("lock", None),
    "NULs at the end": journal(lambda content: content + b"\0" * 4096),
    "the reserve missing": file("reserve", None),
}
# One line is damaged: the others arrive, and it is kept with the reason.
LINE = {
    "not JSON": line("{{{{"),
    "a number": line("5"),
    "a list": line("[1]"),
    "null": line("null"),
    "text": line('"metric"'),
    "empty": line(""),
    "deep": line("[" * 100_000 + "]" * 100_000),
    "an object of nothing": line("{}"),
    "an object of something else": line('{"n": 1}'),
    "metric without time": line('{"metric":"m","value":1.0,"step":2}'),
    "metric of text": line('{"metric":"m","value":"x","step":2,"at":1}'),
    "metric NaN": line('{"metric":"m","value":NaN,"step":2,"at":1}'),
    "metric true": line('{"metric":"m","value":true,"step":2,"at":1}'),
    "metric name number": line('{"metric":5,"value":1.0,"step":2,"at":1}'),
    "metric step huge": line('{"metric":"m","value":1.0,"step":%s,"at":1}' % ("9" * 30)),
    "metric value huge": line('{"metric":"m","value":%s,"step":2,"at":1}' % ("9" * 400)),
    "metric step float": line('{"metric":"m","value":1.0,"step":2.5,"at":1}'),
    "param without value": line('{"param":"q"}'),
    "param of a list": line('{"param":"q","value":[1]}'),
    "tag of null": line('{"tag":"t","value":null}'),
    "artifact a number": line('{"artifact":5}'),
    "artifact missing": line('{"artifact":"nope.txt"}'),
    "artifact outside": line('{"artifact":"../../../../../../../../../etc/hostname"}'),
    "artifact absolute": line('{"artifact":"/etc/hostname"}'),
    "artifact a link to the outside": link,
    "artifact a pipe": pipe,
    "dataset of numbers": line('{"dataset":1,"source":2,"digest":3,"context":4}'),
    "an end of another kind": line('{"end":"EXPLODED","at":5}'),
    "an end without time": line('{"end":"FINISHED"}'),
    "not UTF-8": line(b'{"tag":"\xff"}'),
    "NULs": line("\0" * 50),
}
# A lone surrogate stands for a byte that is not UTF-8; it arrives as a replacement character.
SURROGATES = {
    "in a tag": line('{"tag":"t","value":"\\ud800"}'),
    "in a param": line('{"param":"p","value":"\\udcff"}'),
    "in a name": line('{"tag":"t\\udcff","value":"v"}'),
}
# Nothing can be made of the journal: the folder is set aside.
HOPELESS = {
    "journal a folder": file("journal.jsonl", {}),
    "lock a folder": file("lock", {}),
}
