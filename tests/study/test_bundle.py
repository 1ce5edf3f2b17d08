"""A hand-in made from real runs, and what `check` says of it and of forgeries."""

import contextlib
import gc
import io
import itertools
import json
import os
import pickle
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import mlflow
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from compression import methods
from compression.errors import UserError
from compression.runs import chain
from compression.runs.settings import Settings
from compression.study import budget, bundle, bundle_check, bundle_files, database, notes, participant_runs, reading
from compression.study.texts import printable
from tests.study.conftest import join


@contextlib.contextmanager
def lab_in(folder):
    """The lab as it is for p07."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSION_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("COMPRESSION_STUDY_URL", raising=False)
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory, made):
    """The bundle of p07, who pruned a digit classifier."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "home").mkdir()
    (folder / "home" / "study.db").write_bytes(made.read_bytes())
    with lab_in(folder):
        with database.open_session() as session:
            notes.add_note(session, join(session, "p07", until="hand-in"), "it **works**")
        settings = Settings(task="digits", participant="p07", limit=200, device="cpu", threads=1)
        chain.compress(settings, methods.parse("magnitude:sparsity=0.6,epochs=1"))
        return bundle.make_bundle("p07", folder / "bundle.zip")


def content(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forged(folder, files):
    """A bundle of these files whose manifest lists them as they are."""
    (folder / "forged").mkdir()
    for name, data in files.items():
        if name != "manifest.json":
            (folder / "forged" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "forged" / name).write_bytes(data)
    bundle.write_archive("p07", folder / "forged", folder / "forged.zip")
    return folder / "forged.zip"


def test_a_bundle_is_whole_and_holds_everything(handed_in):
    found = bundle_check.check_bundle(handed_in)
    assert found.problems == []
    assert found.participant == "p07"
    files = content(handed_in)
    assert files["journal.md"].decode().endswith("it **works**\n")
    assert len(files["timesheet.csv"].decode().splitlines()) in (9, 10)
    [report] = [data for name, data in files.items() if name.endswith("report.pdf")]
    assert report.startswith(b"%PDF")
    assert any(name.startswith("code/compression/study/") for name in files)
    assert not any(name.endswith(".pyc") or "/home/" in name for name in files)
    assert not Path(f"{handed_in}.half").exists()


def test_its_weights_load_without_pickle_and_its_layers_show_what_was_pruned(handed_in, tmp_path):
    with zipfile.ZipFile(handed_in) as archive:
        paths = {Path(n).name: archive.extract(n, tmp_path) for n in archive.namelist() if n.startswith("runs/")}
    before, after = (torch.load(paths[f"{name}.pth"], weights_only=True) for name in ("before", "after"))
    zeros = [sum((t == 0).sum().item() for t in state.values()) for state in (before, after)]
    assert zeros[1] > zeros[0] + 1000
    assert "sparsity_before" in Path(paths["layers.csv"]).read_text().splitlines()[0]
    assert "sparsity=0.6" in json.loads(Path(paths["recipe.json"]).read_text())["steps"]


def test_the_hand_in_is_not_open_before_the_last_questionnaire_and_needs_a_run(lab, tmp_path):
    lab.join("p01", until="after")
    with pytest.raises(UserError, match="first comes Final questionnaire"):
        bundle.make_bundle("p01", tmp_path / "b.zip")
    lab.join("p02", until="hand-in")
    with pytest.raises(UserError, match="no finished run of yours"):
        bundle.make_bundle("p02", tmp_path / "b.zip")
    assert list(tmp_path.glob("*.zip*")) == []


def test_a_changed_missing_or_added_file_is_named(handed_in, tmp_path):
    files = content(handed_in)
    files["timesheet.csv"] += b"combine,,99,0,0\n"
    files["extra.txt"] = b"hello"
    del files["journal.md"]
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    said = bundle_check.check_bundle(tmp_path / "changed.zip").problems
    assert "timesheet.csv is not what was handed in: its checksum differs." in said
    assert "journal.md is listed and missing." in said
    assert "extra.txt is not in the manifest." in said


class Evil:
    def __reduce__(self):
        return Path.write_text, (Path("pwned"), "ran")


@pytest.mark.parametrize(
    ("part", "forge", "said"),
    [
        ("after.pth", lambda path: torch.save({"w": Evil()}, path), "cannot be loaded with weights_only=True"),
        ("after.pth", lambda path: path.write_bytes(pickle.dumps(Evil())), "holds no weights"),
        ("after.pth", lambda path: torch.save([1, 2], path), "is no state dict of tensors"),
        ("model.onnx", lambda path: path.write_bytes(b"not a graph" * 9), "is no ONNX file"),
        ("recipe.json", lambda path: path.write_bytes(b"[" * 100_000), "is no JSON"),
        ("report.html", lambda path: path.write_text("<img src=x onerror=alert(1)>"), "holds a script"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named_and_nothing_runs(handed_in, tmp_path, place, part, forge, said):
    files = content(handed_in)
    [name] = [name for name in files if name.startswith("runs/") and name.endswith(part)]
    forge(tmp_path / "part")
    found = bundle_check.check_bundle(forged(tmp_path, files | {name: (tmp_path / "part").read_bytes()}))
    assert any(problem.startswith(name) and said in problem for problem in found.problems), found.problems
    assert not (place / "pwned").exists()


def test_packed_weights_are_not_unpacked(handed_in, tmp_path):
    files = content(handed_in)
    [name] = [name for name in files if name.endswith("after.pth")]
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    found = bundle_check.check_bundle(forged(tmp_path, files | {name: (tmp_path / "bomb.pth").read_bytes()}))
    assert [p for p in found.problems if "not as torch writes it" in p]


def test_a_zip_bomb_is_refused_before_anything_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("zeros.csv", bytes(200_000_000))
    with pytest.raises(UserError, match="unpack to 2000000"):
        bundle_check.check_bundle(tmp_path / "bomb.zip")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}", "")
    with pytest.raises(UserError, match="10001 files"):
        bundle_check.check_bundle(tmp_path / "many.zip")


@pytest.mark.parametrize(
    "name", ["../up.txt", "/etc/x", "a/../../b", "a\\b", "C:x", "a//b", "./a", "x" * 301, "folder/"]
)
def test_a_name_that_leads_out_of_the_bundle_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "path.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(UserError, match="a file that may not be there"):
        bundle_check.check_bundle(tmp_path / "path.zip")


def test_links_and_double_names_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="may not be there"):
        bundle_check.check_bundle(tmp_path / "link.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "2")
    with pytest.raises(UserError, match="the same name twice"):
        bundle_check.check_bundle(tmp_path / "twice.zip")


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"format": 9}', '{"format": 1, "participant": "p", "files": {"a": 3}}', "[" * 99999]
)
def test_a_manifest_that_is_none_is_one_sentence(tmp_path, manifest):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("manifest.json", manifest)
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        bundle_check.check_bundle(tmp_path / "m.zip")


def test_what_is_no_zip_or_not_there_is_one_sentence(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="is no bundle of the lab"):
        bundle_check.check_bundle(tmp_path / "x.zip")
    with pytest.raises(UserError, match="cannot be read"):
        bundle_check.check_bundle(tmp_path / "nowhere.zip")


def test_somebody_elses_run_cannot_be_handed_in(tmp_path):
    mine = SimpleNamespace(id="mine")
    assert bundle.choose_runs([mine], []) == [mine]
    with pytest.raises(UserError, match="theirs is no finished run of yours; there are mine"):
        bundle.choose_runs([mine], ["theirs"])


def test_what_a_tag_names_is_put_into_no_bundle_unless_the_participant_may_read_it(handed_in, tmp_path):
    with lab_in(handed_in.parent):
        client, gate = mlflow.MlflowClient(), reading.ParticipantGate("p07", frozenset())
        [run] = participant_runs.finished_compressions(participant_runs.load_runs("p07"))
        theirs = client.create_run(client.create_experiment("p08"), tags={"participant": "p08", "stage": "train"})
        try:
            for address in (f"runs:/{theirs.info.run_id}/model", "/etc"):
                client.set_tag(run.id, "baseline", address)
                with pytest.raises(UserError, match="cannot be handed in: baseline cannot"):
                    bundle.make_bundle("p07", tmp_path / "b.zip", (), gate)
        finally:
            client.set_tag(run.id, "baseline", run.tags["baseline"])
        assert list(tmp_path.iterdir()) == []
        assert bundle_check.check_bundle(bundle.make_bundle("p07", tmp_path / "b.zip", (), gate)).problems == []


@pytest.mark.parametrize("name", ["comparison.json", "layers.csv", "figures/x.png"])
def test_a_run_whose_files_are_no_runs_is_told_in_a_sentence(handed_in, tmp_path, name):
    with lab_in(handed_in.parent):
        client = mlflow.MlflowClient()
        [run] = participant_runs.finished_compressions(participant_runs.load_runs("p07"))
        tags = {name: text for name, text in run.tags.items() if not name.startswith("mlflow.")}
        twin = client.create_run("0", tags=tags).info.run_id
        client.set_terminated(twin)
        files = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.id}/", dst_path=str(tmp_path / "files")))
        (files / name).write_bytes(b"[1, 2" if name != "layers.csv" else b"params\nmany\n")
        client.log_artifacts(twin, str(files))
        try:
            with pytest.raises(UserError, match=twin):
                bundle.make_bundle("p07", tmp_path / "b.zip")
        finally:
            client.delete_run(twin)


def test_two_hand_ins_at_once_leave_a_whole_bundle_of_one(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.pth").write_bytes(os.urandom(1_000_000))
    (tmp_path / "out").mkdir()

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            written = [pool.submit(bundle.write_archive, "p07", f, tmp_path / "out" / "bundle.zip") for f in folders]
        assert [each.exception() for each in written] == [None, None]
        with zipfile.ZipFile(tmp_path / "out" / "bundle.zip") as archive:
            assert archive.testzip() is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bundle.zip"]


SCRIPTS = (
    *("<script>x</script>", "<ScRiPt>", "<svg/onload=x>", "<img src=x onerror=x>", "<img src='x'onerror=x>"),
    *('<img src="x" onerror="x">', "<a href='java&#115;cript:x'>", "<a href='java\tscript:x'>", "<iframe srcdoc=x>"),
    *("<meta http-equiv=refresh content='0;url=//x'>", '<meta http-equiv="refresh" content="0;url=//x">'),
    *("<form action=//x><input name=password>", "<base href=//x>", "<link rel=stylesheet href=//x>", "<img alt='>' x>"),
    *("<a href=data:text/html;base64,PHN>", "<object data=x>", "<embed src=x>", "<!--><img src=x>-->", "<![CDATA[x]]>"),
    *("<?x <img>", "<img src=data:image/svg+xml;base64,AA>", '<img src="data:image/png;base64,AA" onload="x">'),
    *(
        '<img src="data:image/svg+xml,x">',
        '<img src="//x/1.png">',
        "<style>@import '//x'</style>",
        "<p style=color:red>",
    ),
    *(
        '<style>p { background: URL ("//x") }</style>',
        "<style>p { b: \\75rl(//x) }</style>",
        "<math><mtext>",
        "<p\x0conclick=x>",
    ),
    *(
        "<template><p></template>",
        "<noscript><p title='</noscript>x'>",
        "<textarea>",
        "<xmp>",
        "<plaintext>",
        "<p/onclick=x>",
    ),
    *(
        '<p class="a"onclick="x">',
        '<p class="<img src=x>">',
        "<p title=`x`>",
        "<video src=x>",
        "<p>\x1b(J</p>",
        "< script>",
        "<",
    ),
)


@pytest.fixture
def page(tmp_path):
    """`page(content)`: what is wrong with report.html of this content; empty if nothing is."""

    def verify(content):
        (tmp_path / "report.html").write_bytes(content)
        try:
            bundle_files.verify_html(tmp_path / "report.html")
        except bundle_files.InvalidFileError as error:
            return str(error)
        return ""

    return verify


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_page_holds_nothing_but_what_the_labs_own_pages_do(page, script):
    assert page(f"<!doctype html>\n<p>{script}</p>".encode())
    assert page(script.encode("utf-16"))


def test_the_labs_own_pages_are_let_through(handed_in, page):
    [report] = [d for n, d in content(handed_in).items() if n.startswith("runs/") and n.endswith("report.html")]
    assert page(report) == ""
    assert page(b"") == page(b"plain text, 1 > 0 & so on") == page('<p class="a">日本 × –</p>'.encode()) == ""


def test_a_page_of_any_shape_is_read_at_once(page):
    for piece in (
        b"<",
        b"<p",
        b"<p ",
        b'<p a="',
        b'<p a="x" ',
        b"</",
        b"<!--",
        b"&",
        b'"',
        b"<style>",
        b"<p>",
        b"url(",
    ):
        page(piece * (2_000_000 // len(piece)))  # the quadratic expression took 13 minutes for 100 kB


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("runs/x/report.exe", b"MZ", "runs/x/report.exe is no file of a bundle"),
        ("runs/x/open-me.html", b"<p></p>", "is no file of a bundle"),
        ("code/evil.pth", b"x", "is no file of a bundle"),
        ("code/compression/../../x.py", b"x", None),
        ("Journal.MD", b"x", None),
        ("runs/x/\x1b[2J.csv", b"x", None),
        ("timesheet.csv", b"a,b\n1,=HYPERLINK(1)\n", "timesheet.csv holds a formula"),
        ("timesheet.csv", b'a\n"  @x"\n', "timesheet.csv holds a formula"),
        ("timesheet.csv", b"\xff\xfe=", "is no CSV in UTF-8"),
        ("participant.json", b"[" * 5_000_000, "participant.json is larger than 4 MB"),
    ],
)
def test_a_file_that_a_bundle_does_not_have_is_named(tmp_path, name, data, said):
    files = dict.fromkeys(bundle_check.REQUIRED_FILES, b"x") | {"participant.json": b"{}", name: data}
    path = tmp_path / "b.zip"
    make_bundle(path, files)
    if said is None:
        with pytest.raises(UserError, match="may not be there"):
            bundle_check.check_bundle(path)
    else:
        problems = bundle_check.check_bundle(path).problems
        assert any(said in problem for problem in problems), problems


def make_bundle(path, files, participant="p07", **packing):
    listed = {name: {"bytes": len(data), "sha256": sha256(data).hexdigest()} for name, data in files.items()}
    manifest = {"format": 1, "participant": participant, "files": listed}
    with zipfile.ZipFile(path, "w", **({"compression": zipfile.ZIP_DEFLATED} | packing)) as archive:
        for name, data in {"manifest.json": json.dumps(manifest), **files}.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("participant", ["p07\nok: everything fine", "p07\x1b[2J", {"a": 1}, "", "x" * 41, 7])
def test_a_participant_who_is_more_than_an_id_is_no_bundle(tmp_path, participant):
    make_bundle(tmp_path / "b.zip", {}, participant)
    with pytest.raises(UserError, match="has no manifest"):
        bundle_check.check_bundle(tmp_path / "b.zip")


def test_what_a_bundle_says_is_printed_as_one_plain_line(tmp_path, capsys):
    from compression.cli import main

    evil = "\n\x1b]0;pwned\x07ok: everything fine\u202e\r"
    files = dict.fromkeys([evil, *(f"{n}" for n in range(50))], b"x")
    listed = {name: {"bytes": 1, "sha256": "0"} for name in files}
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"format": 1, "participant": "p07", "files": listed}))
    with pytest.raises(SystemExit):
        main(["study", "check", str(tmp_path / "b.zip")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\\n\\x1b]0;pwned\\x07ok: everything fine\\u202e" in said
    assert "more." in said
    assert said.removesuffix("\n").isprintable()


def test_printable_keeps_writing_and_shows_the_rest():
    kept = "plain – × 日本語 ñ\u00a0x 🙂"
    assert printable(kept) == kept
    assert printable("a\tb\nc", allowed="\n") == "a\\tb\nc"
    assert printable("\x1b[31m\u202e\u200b\x00\udc80").isprintable()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_archive_that_asks_for_memory_to_be_read_is_refused(tmp_path, method):
    make_bundle(tmp_path / "b.zip", {"journal.md": b"x"}, compression=method)
    with pytest.raises(UserError, match="may not be there"):
        bundle_check.check_bundle(tmp_path / "b.zip")


def test_a_model_packed_to_be_a_bomb_is_not_unpacked(tmp_path):
    make_bundle(tmp_path / "b.zip", {"runs/x/model.onnx": bytes(5_000_000)})
    problems = bundle_check.check_bundle(tmp_path / "b.zip").problems
    assert "runs/x/model.onnx is not packed as the lab packs models." in problems


def test_a_million_names_are_not_read(tmp_path):
    entry = b"PK\1\2" + bytes(24) + (1).to_bytes(2, "little") + bytes(16) + b"a"
    count = 120_000
    directory = entry * count
    end = b"PK\5\6" + bytes(4) + b"\xff\xff" * 2 + len(directory).to_bytes(4, "little") + bytes(6)
    (tmp_path / "b.zip").write_bytes(directory + end)
    with pytest.raises(UserError, match="it holds 65535 files"):
        bundle_check.check_bundle(tmp_path / "b.zip")
    (tmp_path / "w.pth").write_bytes(b"PK\3\4" + directory + end)
    with pytest.raises(bundle_files.InvalidFileError, match="holds 65535 files"):
        bundle_files.verify_weights(tmp_path / "w.pth")


def onnx_with(tensor, inside):
    """An ONNX file that holds the tensor in a constant, in the branch of an `If`, or in a function."""
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    if inside == "function":
        function = helper.make_function("lab", "f", [], ["y"], [constant], [helper.make_opsetid("", 17)])
        graph = helper.make_graph([helper.make_node("f", [], ["y"], domain="lab")], "g", [], [])
        return helper.make_model(graph, functions=[function])
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("y", 1, [4])])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch) if inside == "If" else constant
    return helper.make_model(helper.make_graph([node], "g", [], []))


@pytest.mark.parametrize("inside", ["constant", "If", "function"])
def test_an_onnx_file_that_names_another_file_is_refused_wherever_it_does(tmp_path, inside):
    place = onnx.StringStringEntryProto(key="location", value="/etc/passwd")
    for location, fine in ((TensorProto.EXTERNAL, False), (TensorProto.DEFAULT, True)):
        tensor = TensorProto(name="t", data_type=1, dims=[1], data_location=location, raw_data=bytes(4))
        if not fine:
            tensor.external_data.append(place)
        (tmp_path / "model.onnx").write_bytes(onnx_with(tensor, inside).SerializeToString())
        if fine:
            bundle_files.verify_onnx(tmp_path / "model.onnx")
        else:
            with pytest.raises(bundle_files.InvalidFileError, match="holds its own weights"):
                bundle_files.verify_onnx(tmp_path / "model.onnx")


def state_dict():
    file = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, file)
    return file.getvalue()


def damaged(data, rng):
    """The bytes with some of them changed, and sometimes cut."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)


@pytest.mark.parametrize("what", ["pth", "onnx", "zip"])
def test_damaged_files_are_refused_and_never_crash(tmp_path, what):
    model = onnx_with(TensorProto(name="t", data_type=1, dims=[1], raw_data=bytes(4)), "If")
    make_bundle(tmp_path / "b.zip", {"journal.md": b"x", "clock.csv": b"a,b\n1,2\n"})
    data = {"pth": state_dict, "onnx": model.SerializeToString, "zip": (tmp_path / "b.zip").read_bytes}[what]()
    verify = {"pth": bundle_files.verify_weights, "onnx": bundle_files.verify_onnx, "zip": bundle_check.check_bundle}[
        what
    ]
    rng = random.Random(2)
    for _ in range(150):
        (tmp_path / "file").write_bytes(damaged(data, rng))
        with contextlib.suppress(bundle_files.InvalidFileError, UserError):
            verify(tmp_path / "file")


def test_weights_with_something_in_front_or_packed_in_them_are_none(tmp_path):
    for data in (b"\x80\x02." + state_dict(), b"#!/bin/sh\n" + state_dict()):
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(bundle_files.InvalidFileError, match="holds no weights"):
            bundle_files.verify_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["/JavaScript", "/J#61vaScript", "/Launch", "/EmbeddedFile", "/ObjStm", "/#4Caunch"])
def test_a_pdf_that_would_do_something_is_refused(tmp_path, name):
    (tmp_path / "r.pdf").write_bytes(b"%PDF-1.7\n1 0 obj << /S " + name.encode() + b" >>")
    with pytest.raises(bundle_files.InvalidFileError, match="and no report of the lab does"):
        bundle_files.verify_pdf(tmp_path / "r.pdf")


def test_a_pipe_a_folder_and_a_device_are_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="is no bundle of the lab"):
            bundle_check.check_bundle(path)


def test_time_and_memory_have_a_budget():
    gc.collect()  # what earlier tests left would be freed within the budget, and count for it
    with pytest.raises(UserError, match="takes more than"), budget.limited(seconds=0.2):
        for _ in itertools.count():
            pass
    with pytest.raises(UserError, match="takes more than"), budget.limited(memory=50 << 20):
        bytearray(200 << 20)
    bytearray(200 << 20)
