"""Bundles of strangers, and bundles made at once, counted."""

import os
import random
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from compression.errors import UserError
from compression.study import budget, bundle, bundle_check, bundle_files
from tests.study.browser import browser
from tests.study.test_bundle import SCRIPTS, TensorProto, damaged, make_bundle, onnx_with, state_dict

pytestmark = pytest.mark.faults
FRAGMENTS = (
    *(
        "<p>",
        "</p>",
        '<p class="a">',
        "<style>",
        "</style>",
        "<title>",
        "</title>",
        "<pre>",
        "</pre>",
        "<table>",
        "<td>",
    ),
    *(
        '<img src="data:image/png;base64,AA==" alt="x">',
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "&lt;",
        "'",
        '"',
        ">",
        "<",
        "/",
    ),
    *("<script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">", "<details>", "\n"),
    *(
        "<svg onload=\"document.title='owned'\">",
        "p { color: red }",
        " onclick=",
        "<body onload=\"document.title='owned'\">",
    ),
)


def verify(path):
    """What is wrong with a page; empty if nothing is."""
    try:
        bundle_files.verify_html(path)
    except bundle_files.InvalidFileError as error:
        return str(error)
    return ""


def test_hand_ins_at_once(tmp_path, tally):
    lost = 0
    for number in range(12):
        folders = [tmp_path / f"{number}-{side}" for side in "ab"]
        for folder in folders:
            folder.mkdir()
            for index in range(6):
                (folder / f"{index}.pth").write_bytes(os.urandom(3_000_000))

        def write(folder, delay):
            time.sleep(delay)
            bundle.write_archive("p07", folder, tmp_path / "bundle.zip")

        with ThreadPoolExecutor(2) as pool:
            written = [pool.submit(write, folder, side * 0.02 * number) for side, folder in enumerate(folders)]
        failures = [each for each in written if each.exception()]
        with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
            lost += bool(failures) or archive.testzip() is not None
    tally("pairs of hand-ins at once", tried=12, lost=lost)


def test_scripts_in_every_form(tmp_path, tally):
    path, tried, leaked = tmp_path / "report.html", 0, 0
    for script in SCRIPTS:
        for before, after in (("", ""), ("<p>", "</p>"), ("<!doctype html>\n<pre>", ""), ("<style>", "</style>")):
            for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-32", "utf-7"):
                path.write_bytes(f"{before}{script}{after}".encode(encoding))
                tried, leaked = tried + 1, leaked + (not verify(path) and encoding != "utf-7")
    tally("scripts in a report", tried=tried, leaked=leaked)


def test_no_page_that_passes_runs_anything_in_a_browser(tmp_path, tally):
    rng, passed, leaked = random.Random(5), 0, 0
    with browser() as chromium, chromium.new_context() as context:
        page = context.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        for number in range(600):
            path = tmp_path / f"{number}.html"
            path.write_text("".join(rng.choices(FRAGMENTS, k=rng.randint(1, 7))), encoding="utf-8")
            if not verify(path):
                passed += 1
                asked.clear()
                page.goto(path.as_uri())
                own = [url for url in asked if not url.startswith(("file:", "data:image/png"))]
                leaked += page.title() == "owned" or bool(own)
            path.unlink()
    assert passed > 50
    tally("pages that pass, in a browser", tried=passed, leaked=leaked)


def test_pages_of_any_size_within_a_budget(tmp_path, tally):
    path, tried, stuck = tmp_path / "report.html", 0, 0
    for piece in (
        "<",
        "<p",
        "<p ",
        '<p a="',
        '<p class="x"',
        "</",
        "<!--",
        "&",
        '"',
        "<style>",
        "<p>",
        "url(",
        "\\",
        "<p\n",
    ):
        for size in (5_500, 100_000, 10_000_000):
            path.write_text(piece * (size // len(piece)))
            tried += 1
            try:
                with budget.limited(seconds=60):
                    verify(path)
            except UserError:
                stuck += 1
    tally("pages of one repeated piece", tried=tried, stuck=stuck)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("what", "count"), [("pth", 1500), ("onnx", 800), ("zip", 500)])
def test_damaged_files(tmp_path, tally, what, count):
    model = onnx_with(TensorProto(name="t", data_type=1, dims=[1], raw_data=bytes(4)), "If")
    make_bundle(tmp_path / "b.zip", {"journal.md": b"x", "clock.csv": b"a,b\n1,2\n", "runs/r/after.pth": state_dict()})
    data = {"pth": state_dict, "onnx": model.SerializeToString, "zip": (tmp_path / "b.zip").read_bytes}[what]()
    check = {"pth": bundle_files.verify_weights, "onnx": bundle_files.verify_onnx, "zip": bundle_check.check_bundle}[
        what
    ]
    rng, stuck = random.Random(1), 0
    for _ in range(count):
        (tmp_path / "file").write_bytes(damaged(data, rng))
        try:
            check(tmp_path / "file")
        except (bundle_files.InvalidFileError, UserError):
            continue
        except BaseException:  # noqa: BLE001 - the count is the result
            stuck += 1
    tally(f"damaged {what}", tried=count, stuck=stuck)
