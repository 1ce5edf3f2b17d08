"""A hand-in made from real runs, and what `check` says of it and of forgeries."""

import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compression import methods
from compression.errors import UserError
from compression.runs import chain
from compression.runs.settings import Settings
from compression.study import bundle, bundle_check, database, notes
from tests.study.conftest import join


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory, made):
    """The bundle of p07, who pruned a digit classifier."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "home").mkdir()
    (folder / "home" / "study.db").write_bytes(made.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSION_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("COMPRESSION_STUDY_URL", raising=False)
        patch.chdir(folder)
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
