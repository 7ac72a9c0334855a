"""The new form says what the JSON files said; goes with them."""

import csv
import gzip
import json

from structseg.files import ROOT
from structseg.metric_names import flat_metrics
from structseg.results.files import images_path, read_images, read_runs
from structseg.results.manifest import MANIFEST, load_manifest

FOLDER = MANIFEST.parent


def test_every_old_result_is_there_to_six_decimals():
    rows = load_manifest(stages=False)
    runs = {(run.row, run.seed): run for run in read_runs(FOLDER)}
    old = [json.loads(path.read_text()) for path in FOLDER.glob("*.[0-9]*.json")]
    assert {(content["row"], content["seed"]) for content in old} == runs.keys()
    assert len(old) == 72
    compared = 0
    for content in old:
        run = runs[content["row"], content["seed"]]
        known = flat_metrics(content["metrics"])
        assert set(run.metrics) == set(rows[run.row].kept)
        assert all(value == round(known[key], 6) for key, value in run.metrics.items())
        assert content["hardware"] == run.processor
        assert content["commit"].startswith(run.commit)
        assert (content["recipe"], content["date"]) == (run.recipe, run.date)
        assert abs((content["wall_seconds"] + content.get("test_seconds", 0)) / 60 - run.minutes) <= 0.0501
        assert run.train_images == content["train_images"]
        assert run.test_images == content[f"{content.get('scored_on', 'test')}_images"]
        path, table = images_path(FOLDER, run.row, run.seed), FOLDER / f"{run.row}.{run.seed}.images.csv.gz"
        if path.is_file():
            header, *lines = csv.reader(gzip.decompress(table.read_bytes()).decode().splitlines())
            if header[0] != "test":
                header, lines = ["test", *header], [["", *line] for line in lines]
            for test, columns in read_images(path).items():
                own = [line for line in lines if line[0] == test]
                for name, cells in columns.items():
                    assert cells == [line[header.index(name)] for line in own]
                compared += 1
        else:
            assert run.seed != rows[run.row].seeds[0] or not table.is_file()
    assert compared > 60, compared
    assert ROOT in FOLDER.parents
