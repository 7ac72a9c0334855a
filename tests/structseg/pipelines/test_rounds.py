"""`structseg rounds`: the table of a run's rounds, their notices, and pictures of their artefacts."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from structseg.datamodules.confounded_scenes.datamodule import ConfoundedScenesDataModule
from structseg.datamodules.label_spaces import SCENES
from structseg.datamodules.round_files import ArtefactManifest, Confounders, write_cams, write_confounders, write_mask
from structseg.datamodules.weak.datamodule import WeaklySupervisedDataModule
from structseg.metric_names import nest_metrics
from structseg.pipelines import rounds
from structseg.pipelines.record import Inputs, Record, Scored
from structseg.pipelines.round_pictures import (
    confounder_sheet,
    correlation,
    image_sheet,
    save_picture,
    true_confounders,
)
from structseg.pipelines.rounds import Round, find_rounds, main, rounds_table, run_datamodule

SETTINGS = {"train": 4, "test": 1, "size": [48, 48], "co_occurrence": 0.5}
NAMES = [f"scene_train_{i:06d}" for i in range(4)]
SIDE = 192  # panels of 48 pixels, four times as large
MASKS = ("relation_labels", "pseudo_masks", "masks")
PREDICTED = {
    "cams": {"cam_miou": 0.25, "cam_threshold": 0.3, "relation_precision": 0.5, "relation_coverage": 0.75},
    "pseudo_masks": {
        "pseudo_miou": 0.375, "pseudo_mean_fp_object": 0.01, "pseudo_mean_fp_background": 0.02, "pseudo_mean_miss": 0.03,
    },
    "masks": {"mask_miou": 0.625, "mask_iou": {"star": 0.5}},
}  # fmt: skip
TESTS = {name: nest_metrics({f"test/{key}": value for key, value in logged.items()}) for name, logged in {
    "plain": {"miou": 0.5, "iou/star": 0.75, "crf": 0.0},
    "crf": {"miou": 0.5625, "iou/star": 0.75, "crf": 1.0, "without_crf/miou": 0.5, "without_crf/iou/star": 0.25},
}.items()}  # fmt: skip


def put(folder, kind, write):
    """A folder of artefacts: `write(folder, name)` for each image."""
    made = folder / kind
    made.mkdir(parents=True)
    for name in NAMES:
        write(made, name)
    ArtefactManifest(kind, f"{folder.name}/{kind}", "M", SCENES.name, SCENES.classes, len(NAMES)).write(made)


def half():
    """Activation of class 2 in the left half."""
    maps = np.zeros((8, 12, 12))
    maps[1, :, :6] = 1
    return maps


def artefacts(folder, first):
    """Maps, and masks that are filled with the classes `first`, `first` + 1 and `first` + 2."""
    put(folder, "cams", lambda made, name: write_cams(made, name, half(), (48, 48)))
    for number, kind in enumerate(MASKS):
        mask = np.full((48, 48), first + number)
        put(folder, kind, lambda made, name, mask=mask: write_mask(made, name, mask, SCENES))


def report(folder, tests=TESTS):
    stages = {stage: {"seconds": 1.0, "notices": [], "scores": scores} for stage, scores in PREDICTED.items()}
    stages["cams"]["notices"] = ["no seeds", "flat"]
    stages["masks"]["notices"] = ["flat"]
    stages["segmenter"] = {"seconds": 2.0, "notices": [], "scores": tests}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps({"round": folder.name, "notices": [], "stages": stages}))


@pytest.fixture
def run(tmp_path):
    """The folder of a run: round 0 and one of the arm `sum`."""
    folder = tmp_path / "conta_made" / "7"
    fit = folder / "round_0" / "classifier" / "abc"
    fit.mkdir(parents=True)
    data = {
        "class_path": "structseg.datamodules.confounded_scenes.datamodule.ConfoundedScenesDataModule",
        "init_args": SETTINGS,
    }
    (fit / "experiment.yaml").write_text(yaml.safe_dump({"data": data}))
    artefacts(folder / "round_0", 1)
    artefacts(folder / "round_1_sum", 4)
    report(folder / "round_0")
    return folder


class TestTable:
    def test_a_finished_round(self, run):
        table = rounds_table("t", [Round.read(run / "round_0")])
        cells = {name.replace("\n", " "): [cell] for name, cell in zip(table.header, table.lines[0], strict=True)}
        assert cells == {
            "round": ["round_0"], "cam mIoU": ["0.2500"], "cam threshold": ["0.30"], "relation precision": ["0.5000"],
            "relation coverage": ["0.7500"], "pseudo-mask mIoU": ["0.3750"], "FP on objects": ["0.0100"],
            "FP on background": ["0.0200"], "misses": ["0.0300"], "test mIoU": ["0.5000"],
            "test mIoU with CRF": ["0.5625"], "mask mIoU (train)": ["0.6250"], "notices": ["2"],
        }  # fmt: skip
        assert table.notes == []

    @pytest.mark.parametrize(("tested", "verdict"), [(1.0, "a test of M"), (0.0, "no test of M")])
    def test_a_round_says_whether_its_context_map_was_tested(self, tested, verdict):
        scores = {"m_zeroed": 0.123, "m_swapped": 0.04, "m_tested": tested}
        one = Round(
            "round_1_sum", {"stages": {"cams": {"scores": scores, "notices": []}}, "notices": []}, finished=True
        )
        (note,) = rounds_table("t", [one]).notes
        said = "logits move by 12.3% without M, 4.0% with another image's, of their deviation"
        assert note == f"round_1_sum: {said}: {verdict}"

    def test_a_round_says_which_company_explains_which_tag(self):
        scores = {"company": {"star": {"moon": 2.25, "fish": 0.125}, "moon": {"star": -3.0}}}
        one = Round("round_0_company", {"stages": {"cams": {"scores": scores, "notices": []}}, "notices": []}, True)
        (note,) = rounds_table("t", [one]).notes
        said = "moon by star (-3.0), star by moon (2.2), star by fish (0.1)"
        assert note == f"round_0_company: tags explained by company (log odds): {said}"

    @pytest.mark.parametrize(
        ("tests", "expected"),
        [
            ({"miou": 0.5, "crf": 0.0}, (0.5, None)),
            ({"crf": TESTS["crf"]}, (0.5, 0.5625)),
            ({"miou": None}, (None, None)),
            (TESTS["crf"], (0.5, 0.5625)),
            ({"plain": {"map": 0.5}}, (None, None)),
        ],
    )
    def test_tests_are_distinguished_by_their_metrics(self, run, tests, expected):
        report(run / "round_0", tests)
        found = Round.read(run / "round_0").tested()
        assert tuple(None if np.isnan(value) else value for value in found) == expected

    def test_an_unfinished_round_shows_the_stages_that_are_done(self, run):
        scored = {"": Scored((), {"cam_miou": 0.125}, 0.0)}
        record = Record(Inputs({}, {}, "1"), "", "0", 1.0, "c0ffee", False, scored, ("look",))
        record.write(run / "round_1_sum" / "cams")
        table = rounds_table("t", [Round.read(run / "round_1_sum")])
        (cells,) = table.lines
        assert (cells[:3], cells[-1]) == (("round_1_sum *", "0.1250", "-"), "1")
        assert table.notes == ["* round_1_sum is not finished: cams done"]

    def test_nothing_done(self, run):
        (run / "round_2_sum").mkdir()
        assert rounds_table("t", [Round.read(run / "round_2_sum")]).notes == [
            "* round_2_sum is not finished: no stage done"
        ]

    @pytest.mark.parametrize("text", ["{", "[]", '{"stages": {"cams": {}}}', '{"stages": {"cams": {"scores": 1, "notices": []}}}'])  # fmt: skip
    def test_a_damaged_report(self, run, text):
        (run / "round_0" / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"report.json is damaged; remove it"):
            Round.read(run / "round_0")

    def test_on_the_command_line(self, run, capsys):
        rounds.main([str(run)])
        out = capsys.readouterr().out
        assert "conta_made, seed 7" in out
        assert "0.5625" in out
        assert "* round_1_sum is not finished: no stage done" in out
        main([str(run), "--only", "round_0"])
        assert "round_1_sum" not in capsys.readouterr().out

    def test_notices_by_stage(self, run, capsys):
        main([str(run), "--notices"])
        assert capsys.readouterr().out.splitlines() == [
            "round_0/cams: no seeds", "round_0/cams: flat", "round_0/masks: flat",
        ]  # fmt: skip
        main([str(run), "--notices", "--only", "round_1_sum"])
        assert capsys.readouterr().out == "no notices\n"


class TestFolder:
    def test_rounds_in_order(self, run):
        for name in ("round_2_sum", "round_10_sum", "round_1_none", "rounds", "round_x"):
            (run / name).mkdir()
        names = [path.name for path in find_rounds(run)]
        assert names == ["round_0", "round_1_none", "round_1_sum", "round_2_sum", "round_10_sum"]
        only = ["round_1_sum", "round_0"]
        assert [path.name for path in find_rounds(run, only)] == only

    def test_a_folder_that_is_no_run(self, run):
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; give that of a pipeline's run"):
            find_rounds(run / "nowhere")
        with pytest.raises(ValueError, match=r"conta_made is not a run of .*: it has no round_0; give .*conta_made/7$"):
            find_rounds(run.parent)
        with pytest.raises(ValueError, match=r"has no round_1_sun \(did you mean round_1_sum\?\)"):
            find_rounds(run, ["round_1_sun"])
        with pytest.raises(ValueError, match="has no x; there are round_0, round_1_sum"):
            find_rounds(run, ["x"])

    def test_the_data_of_the_run(self, run):
        found = run_datamodule(run)
        assert isinstance(found, ConfoundedScenesDataModule)
        assert (found.co_occurrence, found.size, list(found.entries("train"))) == (0.5, (48, 48), NAMES)
        with pytest.raises(ValueError, match="ConfoundedScenesDataModule has no root; leave out --root"):
            run_datamodule(run, "x")

    def test_the_run_of_the_record_counts_and_its_data_may_have_moved(self, run):
        other = run / "round_0" / "classifier" / "def"
        other.mkdir()
        data = {
            "class_path": "structseg.datamodules.voc.datamodule.VOCDataModule",
            "init_args": {"root": "was", "label_space": "voc[cat]"},
        }
        (other / "experiment.yaml").write_text(yaml.safe_dump({"data": data}))
        Record(Inputs({}, {}, "1"), "abc", "0", 1.0, "c0ffee", False, {}).write(other.parent)
        assert isinstance(run_datamodule(run), ConfoundedScenesDataModule)
        Record(Inputs({}, {}, "1"), "def", "0", 1.0, "c0ffee", False, {}).write(other.parent)
        assert str(run_datamodule(run, "is").root) == "is"

    def test_no_configuration_or_other_data(self, run):
        path = run / "round_0" / "classifier" / "abc" / "experiment.yaml"
        path.write_text(yaml.safe_dump({"data": {"class_path": "structseg.datamodules.base.SegmentationDataModule"}}))
        with pytest.raises(ValueError, match="SegmentationDataModule is not a datamodule of weak supervision"):
            run_datamodule(run)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"no RUN_ID/experiment.yaml in .*round_0/classifier"):
            run_datamodule(run)


class TestImages:
    def test_a_row_a_round_in_the_colours_of_the_classes(self, run):
        data = run_datamodule(run)
        page = np.asarray(image_sheet(find_rounds(run), NAMES[:1], data))
        fill = {index: np.full((SIDE, SIDE, 3), SCENES.palette[index], np.uint8) for index in range(1, 7)}
        left, top = zip(*[found(page, fill[index]) for index in (1, 2, 3)], strict=True)
        assert left[0] < left[1] < left[2]
        assert len(set(top)) == 1
        below = [found(page, fill[index]) for index in (4, 5, 6)]
        assert [place[0] for place in below] == list(left), "kinds share a column"
        assert all(place[1] > top[0] + SIDE for place in below), "round 1 is below round 0"

    def test_image_truth_and_heat(self, run):
        data = run_datamodule(run)
        image, truth, _ = data.read(NAMES[1])
        page = np.asarray(image_sheet(find_rounds(run, ["round_0"]), [NAMES[1]], data))
        large = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        left, top = found(page, large)
        colours = np.array(SCENES.palette, np.uint8)[truth].repeat(4, 0).repeat(4, 1)
        at, same = found(page, colours)
        assert same == top
        assert at > left + SIDE
        _, top = found(page, np.full((SIDE, SIDE, 3), SCENES.palette[1], np.uint8))
        heat = page[top : top + SIDE, left : left + SIDE].astype(int).sum(-1)
        assert heat[:, : SIDE // 2 - 16].min() > heat[:, SIDE // 2 + 16 :].max(), "the left half is lit"

    def test_small_files_and_jpeg(self, run, tmp_path, capsys):
        out = tmp_path / "new" / "a.png"
        main([str(run), "--names", NAMES[0], NAMES[3], "--out", str(out)])
        assert capsys.readouterr().out.strip() == str(out)
        with Image.open(out) as png:
            assert png.mode == "P"
            size = png.size
        save_picture(Image.new("RGB", size), tmp_path / "a.jpg")
        with Image.open(tmp_path / "a.jpg") as jpeg:
            assert (jpeg.format, jpeg.size) == ("JPEG", size)
        assert out.stat().st_size < 200_000
        with pytest.raises(ValueError, match=r"the picture is .*a.gif; expected a name that ends in .png, .jpg, .jpeg"):
            save_picture(Image.new("RGB", size), tmp_path / "a.gif")

    def test_an_unknown_image(self, run):
        with pytest.raises(ValueError, match=r"no training image scene_train_00001 \(did you mean scene_train_000001"):
            image_sheet(find_rounds(run), ["scene_train_00001"], run_datamodule(run))
        with pytest.raises(ValueError, match="no training image x; the first of 4 is scene_train_000000"):
            image_sheet(find_rounds(run), ["x"], run_datamodule(run))

    def test_a_round_without_them(self, run):
        (run / "round_1_sum" / "masks" / "about.json").unlink()
        line = r"round_1_sum/masks has no about.json.*--until round_1_sum/masks"
        with pytest.raises(FileNotFoundError, match=line):
            main([str(run), "--names", NAMES[0]])
        assert image_sheet(find_rounds(run, ["round_0"]), NAMES[:1], run_datamodule(run)).height > 2 * SIDE

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--out", "x.png"], "--out has no effect without --names"),
            (["--root", "x", "--notices"], "--root has no effect without --names or --confounders"),
            (["--names", "x", "--notices"], "not allowed with"),
            (["--name", "x"], "did you mean --names?"),
        ],
    )
    def test_options_that_do_not_go_together(self, run, capsys, more, message):
        with pytest.raises(SystemExit):
            main([str(run), *more])
        error = capsys.readouterr().err
        assert error.startswith("structseg: error: rounds: ")
        assert message in error
        assert error.count("\n") == 1


def found(page, part):
    """(left, top) of a picture in another."""
    height, width = part.shape[:2]
    for top, left in np.argwhere((page == part[0, 0]).all(-1)):
        if np.array_equal(page[top : top + height, left : left + width], part):
            return int(left), int(top)
    raise AssertionError("the picture is not there")


class Two(WeaklySupervisedDataModule):
    """Two images of 64 x 64 with cats, no dog."""

    masks_by_name = {}  # noqa: RUF012

    def __init__(self):
        super().__init__("voc[cat,dog]", size=(64, 64))
        whole, corner = np.ones((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
        whole[:, 32:] = 255
        corner[0, 0] = 1
        self.masks_by_name = {"whole": whole, "corner": corner}

    def entries(self, split):
        return tuple(self.masks_by_name) if split == "train" else ()

    def read(self, name):
        return Image.new("RGB", (64, 64)), self.masks_by_name[name], np.array([1, 0], np.float32)


class TestConfounders:
    def test_the_true_set_by_hand(self):
        found = true_confounders(Two())
        assert found.images.tolist() == [2, 0]
        cat = np.zeros((32, 32))
        cat[:, :16] = 0.5  # ignored pixels are no cat
        cat[0, 0] = (1 + 0.25) / 2  # a pixel of four
        assert found.maps[0] == pytest.approx(cat, abs=1e-6)
        assert not found.maps[1].any()

    def test_no_true_mask(self):
        data = Two()
        data.masks_by_name["corner"] = None
        with pytest.raises(ValueError, match="corner has no true mask; the true confounders need all"):
            true_confounders(data)

    def test_correlation(self):
        maps = np.array([[[0.0, 1.0]], [[0.5, 0.5]], [[0.7, 0.1]]], np.float32)
        truth = Confounders(maps, np.array([1, 2, 0]), ("a", "b", "c"))
        assert correlation(truth, truth) == pytest.approx(1)
        assert correlation(truth._replace(maps=1 - maps), truth) == pytest.approx(-1)
        other = np.array([[[0.0, 0.5]], [[0.0, 0.5]], [[9, 9]]], np.float32)  # r of (0 .5 0 .5) and (0 1 .5 .5)
        assert correlation(truth._replace(maps=other), truth) == pytest.approx(np.sqrt(0.5))
        assert np.isnan(correlation(truth._replace(maps=np.ones_like(maps)), truth))
        assert np.isnan(correlation(truth, truth._replace(images=np.zeros(3, int))))
        with pytest.raises(ValueError, match="they cannot be compared"):
            correlation(truth._replace(maps=maps[..., :1]), truth)

    def test_the_sheet(self, run, tmp_path, capsys):
        data = run_datamodule(run)
        truth = true_confounders(data)
        for name, maps in (("round_0", truth.maps), ("round_1_sum", truth.maps[..., ::-1])):
            write_confounders(run / name, maps, truth.images, SCENES)
        page = np.asarray(confounder_sheet(find_rounds(run), data))
        tile = first_maps(page)
        assert len(tile) == 3, "each round's and the true one"
        assert np.array_equal(tile[0], tile[2]), "round 0 has the true set"
        assert np.array_equal(tile[1], tile[0][:, ::-1]), "that of round 1 is mirrored"
        out = tmp_path / "c.png"
        main([str(run), "--confounders", str(out)])
        assert out.stat().st_size < 300_000
        assert capsys.readouterr().out.strip() == str(out)

    def test_a_round_without_it(self, run):
        with pytest.raises(FileNotFoundError, match=r"no file .*round_0/confounders.npz; run structseg pipeline FILE"):
            main([str(run), "--confounders", "c.png"])


def first_maps(page):
    """The maps of the first class in the confounder sheet, from the top."""
    drawn = page.astype(int).sum(-1) < 600
    rows = np.flatnonzero(drawn.sum(1) >= 64 * 3)
    tops = [int(row) for row in rows if row - 1 not in rows]
    left = np.flatnonzero(drawn[tops[0] : tops[0] + 64].all(0))[0]
    return [page[top : top + 64, left : left + 64] for top in tops]
