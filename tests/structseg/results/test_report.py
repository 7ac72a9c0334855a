import os
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from structseg.command.processes import exclusive_lock
from structseg.files import write_result
from structseg.lightning_modules.callbacks.image_scores import image_columns, write_table
from structseg.messages import UsageError
from structseg.results import report
from structseg.results.files import write_run
from tests.structseg.results.made import manifest, run

CLASSES = ("background", "skin<b>")
CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 3},
    "model": {"class_path": "structseg.lightning_modules.fasseg_unet.FASSEGUNet", "init_args": {}},
    "data": {
        "class_path": "structseg.datamodules.synthetic_faces.datamodule.SyntheticFacesDataModule",
        "init_args": {"batch_size": 7},
    },
}


def make_run(folder, images=30, side=40, worst=20):
    """What a fit and its test leave, by hand."""
    (folder / "pictures" / "worst_test").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "metrics.csv").write_text(
        "epoch,train/loss_epoch,val/loss,val/miou\n0,1.0,2.0,\n0,,,0.25\n1,0.5,1.0,0.5\n"
    )
    (folder / "classes_test.csv").write_text("class,iou,precision,recall,f1\nbackground,0.9,1,1,1\nskin<b>,nan,1,1,1\n")
    (folder / "notices_test.txt").write_text("no CRF\n")
    write_result(folder / "start.json", {"date": "2026-11-30", "commit": "c0ffee", "hardware": "box"})
    (folder / "finished.json").write_text("{}")
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "pictures" / "confusion_test.png")
    for number in range(worst):
        Image.fromarray(pixels).save(folder / "pictures" / "worst_test" / f"{number + 1:02d}.jpg")
    rows = [[f"face_{i:04d}", str(i), "5", "1", "1", "1", "1", str(i % 7), "0.1", "0.5"] for i in range(images)]
    write_table(folder / "images_test.csv.gz", [image_columns(CLASSES), *rows])
    return folder


def page(*targets, out, **more):
    report.main(
        [*map(str, targets), "-o", str(out), *(word for pair in more.items() for word in (f"--{pair[0]}", pair[1]))]
    )
    return out.read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "exp" / "1a2b"), page(folder / "exp" / "1a2b", out=folder / "r.html")


def test_a_run_on_one_page(made):
    text = made[1]
    assert "<h1>exp/1a2b</h1>" in text
    for value in (
        "c0ffee",
        "box",
        "no CRF",
        "<td>data.batch_size</td><td>7</td>",
        "<td>trainer.max_epochs</td><td>3</td>",
    ):
        assert value in text, value
    assert "skin&lt;b&gt;" in text, "names are no markup"
    assert "skin<b>" not in text
    assert "<td>0.9000</td>" in text
    assert text.count("<figure>") == 20
    assert text.index("face_0000: mean IoU") < text.index("face_0001: mean IoU"), "the worst first"
    assert "Curves" in text
    assert "Confusion, test" in text
    assert 'class="note"' not in text
    addresses = re.findall(r"""(?:src|href)=["']?([^"' >]+)""", text)
    assert len(addresses) == 1 + 2 + 20
    assert all(address.startswith("data:") for address in addresses)
    assert "http" not in re.sub(r"http-equiv", "", text)


def test_a_thousand_test_images_take_less_than_ten_megabytes(tmp_path):
    """Noise is the largest picture there is."""
    folder = make_run(tmp_path / "exp" / "1", images=1000, side=392)
    assert len(page(folder, out=tmp_path / "r.html")) < 10_000_000


def test_a_running_fit(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "exp" / "going")
    for name in ("finished.json", "classes_test.csv", "images_test.csv.gz", "notices_test.txt"):
        (folder / name).unlink()
    shutil.rmtree(folder / "pictures")
    with exclusive_lock(folder):
        text = page(folder, out=tmp_path / "r.html")
    assert "This run is still going: the page shows what there is." in text
    assert "There is no images_test.csv.gz yet." in text
    assert "Curves" in text
    text = page(folder / "checkpoints" / "best.ckpt", out=tmp_path / "r.html")
    assert "The fit is not finished" in text


@pytest.mark.parametrize(
    "name",
    ["metrics.csv", "classes_test.csv", "images_test.csv.gz", "start.json", "pictures/worst_test/03.jpg",
     "pictures/confusion_test.png", "experiment.yaml", "notices_test.txt"],
)  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe{", None])
def test_damaged_files_are_noted(made, tmp_path, name, content):
    folder = shutil.copytree(made[0], tmp_path / "exp" / "x")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    text = page(folder, out=tmp_path / "r.html")
    assert text.rstrip().endswith("</html>")
    told = "not shown, as it cannot be read" in text
    assert told or name in ("metrics.csv", "notices_test.txt", "classes_test.csv", "experiment.yaml"), (
        "a part may be left"
    )


def test_other_targets_are_refused_in_one_line(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for targets, kind, message in (
        ([made[0].parent], FileNotFoundError, r"no run in .*exp \(no experiment.yaml\); the newest in it is .*1a2b"),
        (
            ["runs/nowhere"],
            FileNotFoundError,
            r"no run in runs/nowhere \(no experiment.yaml\); give runs/EXPERIMENT/ID",
        ),
        ([made[0], "lfw_light_ce"], UsageError, r"is a run; give only one run"),
        (["lfw_lite_ce"], ValueError, r"no row lfw_lite_ce in the manifest \(did you mean lfw_light_ce\?\)"),
    ):
        with pytest.raises(kind, match=message) as error:
            report.main([*map(str, targets)])
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_rows_on_one_page(tmp_path, capsys):
    path = manifest(tmp_path, a={"decides": "Which."}, b={}, c={})
    for name, values in (("a", (0.5, 0.6, 0.8)), ("b", (0.4, 0.4, 0.5))):
        for seed, value in enumerate(values):
            write_run(tmp_path, run(name, seed, value))
    claim = {"claim": "c <i>", "row": "a", "control": "b", "metric": "clean.miou", "better": "more"}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([claim]))
    text = page("a", "c", out=tmp_path / "r.html", manifest=str(path))
    assert capsys.readouterr().out == f"{tmp_path / 'r.html'}\n"
    assert "c is not measured yet" in text
    assert "A row. Which." in text
    assert "<td>c &lt;i&gt;</td>" in text
    assert "<td>+0.100, +0.200, +0.300</td>" in text
    assert text.count("<circle") == 3 + 1
    assert "<td>0.633</td><td>-</td>" in text
    (tmp_path / "runs.csv").write_text("row,seed")
    with pytest.raises(ValueError, match=r"runs\.csv has the columns"):
        page("a", out=tmp_path / "r.html", manifest=str(path))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_in_a_browser(made, width):
    """No error in the console, no request, the table sorts, the worst images show, nothing is wider than the window."""
    sync_playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs `pip install playwright`"
    ).sync_playwright
    if not CHROMIUM:
        pytest.skip("needs a chromium on the PATH")
    with sync_playwright() as playwright:
        args = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        tab = browser.new_page(viewport={"width": width, "height": 900})
        told, asked = [], []
        tab.on("console", lambda message: told.append(message.text))
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((made[0].parents[1] / "r.html").as_uri())
        images = tab.locator("figure img")
        assert images.count() == 20
        assert all(images.nth(i).evaluate("image => image.complete && image.naturalWidth > 0") for i in range(20))
        images.last.scroll_into_view_if_needed()
        assert images.last.is_visible()
        head = tab.locator("table").last.locator("th", has_text="mean IoU")
        columns = []
        for _ in range(2):
            head.click()
            cells = tab.locator("table").last.locator("tbody tr td:nth-child(2)").all_inner_texts()
            columns.append([float(cell) for cell in cells])
        assert columns[0] == sorted(columns[0]) != columns[1] == sorted(columns[0], reverse=True)
        assert head.get_attribute("aria-sort") == "descending"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert told == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
