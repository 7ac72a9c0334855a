import math
import multiprocessing
from dataclasses import replace

import pytest

from structseg.files import part_of, write_result, write_whole
from structseg.results import files
from structseg.results.files import METRICS, RUNS, images_path, read_images, read_runs, write_run
from tests.structseg.results.made import HEADER, image, run


def test_what_is_written_is_read(tmp_path):
    assert read_runs(tmp_path / "nowhere") == []
    first = run("b", 10, {"128.all.miou": 0.123456, "x": math.inf, "error": 1234.56789})
    second, third = run("b", 2, hardware="H200", threads=0), run("a", 3)
    for each in (first, second, third):
        write_run(tmp_path, each)
    assert read_runs(tmp_path) == [third, second, replace(first, metrics={**first.metrics, "error": 1234.56789})]
    assert (first.processor, second.processor) == ("EPYC, 2 cores, 2 threads", "H200")
    write_run(tmp_path, replace(second, minutes=9.0, metrics={"x": math.nan}))
    again = read_runs(tmp_path)[1]
    assert (again.minutes, list(again.metrics), math.isnan(again.value("x"))) == (9.0, ["x"], True)
    lines = (tmp_path / RUNS).read_text().splitlines()
    assert lines[0] == "row,seed,commit,date,hardware,threads,minutes,recipe,train_images,test_images"
    assert lines[1] == 'a,3,c0ffee,2026-11-22T13:00:00+00:00,"EPYC, 2 cores",2,1.5,r,4,3'
    assert (tmp_path / METRICS).read_text().splitlines()[:2] == ["row,seed,metric,value", "a,3,clean.miou,0.5"]
    with pytest.raises(ValueError, match=r"a seed 3 has no metric clean.mio \(did you mean clean.miou\?\)"):
        third.value("clean.mio")


def test_images(tmp_path):
    tables = {"": [HEADER, image("x"), image("y", error=7)], "round_1.masks": [["name", "tp/a"], ["z", "3"]]}
    write_run(tmp_path, run(), tables)
    path = images_path(tmp_path, "a", 0)
    read = read_images(path)
    assert read["round_1.masks"] == {"name": ["z"], "tp/a": ["3"]}
    assert (read[""]["name"], read[""]["component_error"], read[""]["fn/face"]) == (
        ["x", "y"],
        ["2", "7"],
        ["10", "10"],
    )
    before = path.read_bytes()
    write_run(tmp_path, run("b"), tables)
    assert images_path(tmp_path, "b", 0).read_bytes() == before, "equal scores make equal bytes"
    write_run(tmp_path, run(metrics=0.75))
    assert not path.exists(), "scores of the run before are not this one's"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (RUNS, lambda text: text.replace("row,seed", "seed,row"), "runs.csv has the columns seed,row"),
        (RUNS, lambda text: text[:-3], "runs.csv ends within a line, so it is incomplete"),
        (RUNS, lambda text: text + "b,1\n", "runs.csv, line 3: 2 values, expected 10"),
        (RUNS, lambda text: text.replace("a,0", "a,zero"), "runs.csv, line 2: seed is 'zero', not a number"),
        (RUNS, lambda text: text + text.splitlines(True)[1], "runs.csv, line 3: a seed 0 is there twice"),
        (
            RUNS,
            lambda text: text + text.splitlines(True)[1].replace("a,0", "a,1"),
            "metrics.csv has no figure of a seed 1",
        ),
        (RUNS, lambda _: b"\xff\xfe", "runs.csv is not UTF-8 text"),
        (RUNS, lambda _: "", "runs.csv has the columns ; expected row,seed"),
        (METRICS, lambda text: text.replace("0.5", "half"), "metrics.csv, line 2: value is 'half', not a number"),
        (METRICS, lambda text: text + text.splitlines(True)[1], "line 3: clean.miou of a seed 0 is there twice"),
        (METRICS, lambda text: text[:25], "metrics.csv ends within a line"),
    ],
)
def test_a_damaged_file_is_named_in_a_line(tmp_path, name, change, message):
    write_run(tmp_path, run())
    content = change((tmp_path / name).read_text())
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_runs(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"x", b"\xfd7zXZ\x00"])
def test_damaged_images_are_named(tmp_path, content):
    write_run(tmp_path, run(), {"": [HEADER, image("x")]})
    path = images_path(tmp_path, "a", 0)
    path.write_bytes(content or path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.0\.csv\.xz is damaged"):
        read_images(path)


def test_a_killed_writer_keeps_the_earlier_runs(tmp_path, monkeypatch):
    """Whichever file it was at."""
    write_run(tmp_path, run(), {"": [HEADER, image("x")]})
    before = read_runs(tmp_path)
    for last in range(3):
        calls = []

        def killed(path, content, last=last, calls=calls):
            calls.append(path)
            if len(calls) > last:
                part_of(path).write_bytes(content[:5])
                raise KeyboardInterrupt
            write_whole(path, content)

        monkeypatch.setattr(files, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            write_run(tmp_path, run("b"), {"": [HEADER, image("x")]})
        assert read_runs(tmp_path) == before
    monkeypatch.undo()
    write_run(tmp_path, run("b"))
    assert [found.row for found in read_runs(tmp_path)] == ["a", "b"]
    assert not [*tmp_path.rglob("*.part")]


def _write(folder, seed):
    write_run(folder, run(seed=seed))


def test_writers_wait_for_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, seed)) for seed in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [found.seed for found in read_runs(tmp_path)] == list(range(6))


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "x.json"
    write_result(path, {"a": math.nan, "b": [math.inf, 1]})
    before = path.read_text()
    assert before == '{\n  "a": null,\n  "b": [\n    null,\n    1\n  ]\n}\n'
    with pytest.raises(TypeError):
        write_result(path, {"config": object()})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
