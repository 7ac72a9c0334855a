"""Configurations: found by name, merged with their bases, equal in every command."""

from itertools import pairwise

import pytest
import yaml

from structseg.audit import command as audit
from structseg.command import configs_list, show
from structseg.command.configs import resolved_config
from structseg.files import experiments_folder
from structseg.messages import UsageError
from structseg.options.config_files import config_names, find_config, load_config, merge


class TestNames:
    @pytest.mark.parametrize("name", ["fasseg_v2", "fasseg_unet/fasseg_v2"])
    def test_a_name_is_found_from_anywhere(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        assert find_config(name) == experiments_folder() / "fasseg_unet" / "fasseg_v2.yaml"
        (tmp_path / name).mkdir(parents=True)
        assert find_config(name).parent == experiments_folder() / "fasseg_unet", "a folder of that name is no file"

    def test_a_path_comes_before_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "fasseg_v2").write_text("trainer: {}")
        assert find_config("fasseg_v2").read_text() == "trainer: {}"
        assert find_config("fasseg_v2", tmp_path) == tmp_path / "fasseg_v2"

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ("fasseg_v22", FileNotFoundError, r"no configuration fasseg_v22 \(did you mean fasseg_v2\?\)"),
            ("consensus/lfw_part", FileNotFoundError, r"\(did you mean consensus/lfw_parts\?\)"),
            ("experiments/conta/voc12.yaml", FileNotFoundError, r"\(did you mean conta/voc12\?\)"),
            ("qqqq", FileNotFoundError, "no configuration qqqq; structseg configs lists all"),
            ("", FileNotFoundError, "no configuration"),
            ("synthetic", ValueError, "give one of conta/synthetic, fasseg_unet/synthetic, stn_icnn/synthetic"),
        ],
    )
    def test_an_unknown_name(self, tmp_path, monkeypatch, given, error, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(error, match=message):
            find_config(given)

    def test_the_list(self, capsys):
        configs_list.main([])
        lines = capsys.readouterr().out.splitlines()
        titles = [number for number, line in enumerate(lines) if not line.startswith("  ")]
        kinds = [[line.split()[0] for line in lines[a + 1 : b]] for a, b in pairwise([*titles, len(lines)])]
        fits, pipelines, parts = map(set, kinds)
        assert fits | pipelines | parts == set(config_names())
        assert {"fasseg_unet/fasseg_v2", "consensus/lfw_parts"} <= fits
        assert {"conta/voc12", "stn_icnn/helen"} <= pipelines
        assert {"conta/voc12_data", "stn_icnn/helen_base", "conta/small_relation"} <= parts
        assert "sweep" not in "".join(lines)
        with pytest.raises(UsageError, match=r"no name contains consensuss \(did you mean consensus\?"):
            configs_list.main(["consensuss"])

    def test_the_description_of_a_configuration_is_a_whole_sentence(self, tmp_path):
        (tmp_path / "a.yaml").write_text("# A net for V2. of\n# two lines, on U-Nets.\n# More.\nmodel: {}\n# No\n")
        assert configs_list.sentence_of(tmp_path / "a.yaml") == "A net for V2. of two lines, on U-Nets."
        assert all(configs_list.sentence_of(path).endswith((".", ")", "?")) for path in config_names().values())


@pytest.mark.parametrize("name", config_names())
def test_each_has_a_description_in_its_first_line(name):
    first = config_names()[name].read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


@pytest.mark.parametrize(
    ("below", "above", "whole"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}, "e": 5}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"init_args": {"y": 2}}, {"class_path": "A", "init_args": {"x": 1, "y": 2}}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "A", "init_args": {"y": 2}}, {"class_path": "A", "init_args": {"x": 1, "y": 2}}),
        ({"class_path": "m.A", "init_args": {"x": 1}}, {"class_path": "A"}, {"class_path": "A", "init_args": {"x": 1}}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B"}, {"class_path": "B"}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B", "init_args": {"y": 2}}, {"class_path": "B", "init_args": {"y": 2}}),
        ({"init_args": {"x": 1}}, {"class_path": "B"}, {"class_path": "B", "init_args": {"x": 1}}),
    ],
)  # fmt: skip
def test_merging(below, above, whole):
    before = yaml.safe_dump([below, above])
    assert merge(below, above) == whole
    assert yaml.safe_dump([below, above]) == before, "neither is changed"


TINY = """
model: {class_path: ConsensusSegmenter, init_args: {network: {class_path: tests.data.tiny.TinyNetwork}, flip_test: true}}
data: {class_path: tests.data.tiny.TinyDataModule, init_args: {batch_size: 3, augmentation: {flip: 1.0, rotate: 3.0}}}
trainer: {max_epochs: 3}
"""


@pytest.fixture
def based(tmp_path):
    """A configuration in a folder of its own, two bases up, with a key from each of the three files."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "tiny.yaml").write_text(TINY)
    (tmp_path / "below" / "middle.yaml").write_text("base: tiny.yaml\ndata: {init_args: {augmentation: {flip: 0.5}}}")
    path = tmp_path / "top.yaml"
    path.write_text("base: below/middle.yaml\ntrainer: {max_epochs: 7}\n")
    return path


class TestBases:
    def test_each_file_adds_its_settings(self, based):
        for given in (["fit"], ["validate"], ["test"], ["predict"]):
            config = resolved_config([*given, "--config", str(based), "--data.batch_size", "2"])
            data = config["data"]["init_args"]
            assert config["trainer"]["max_epochs"] == 7
            assert (data["augmentation"]["flip"], data["augmentation"]["rotate"], data["batch_size"]) == (0.5, 3.0, 2)
            assert config["model"]["init_args"]["flip_test"] is True
            assert "base" not in config

    def test_a_second_configuration_overrides_the_first(self, based, tmp_path):
        (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 9}")
        config = resolved_config(["fit", "--config", str(based), f"--config={tmp_path / 'more.yaml'}"])
        assert config["trainer"]["max_epochs"] == 9
        assert config["data"]["init_args"]["batch_size"] == 3

    def test_another_class_drops_the_bases_settings(self, based, tmp_path):
        path = tmp_path / "other.yaml"
        path.write_text("base: top.yaml\ndata: {class_path: SyntheticFacesDataModule, init_args: {train: 5}}")
        data = resolved_config(["fit", "--config", str(path)])["data"]
        assert (data["class_path"].rpartition(".")[2], data["init_args"]["train"]) == ("SyntheticFacesDataModule", 5)
        assert data["init_args"]["augmentation"]["flip"] == 0.0

    def test_a_base_by_name(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("base: fasseg_v2\ntrainer: {max_epochs: 2}")
        whole = load_config(path)
        assert whole == {**load_config(find_config("fasseg_v2")), "trainer": {**whole["trainer"], "max_epochs": 2}}

    def test_tools_see_the_same(self, based, tmp_path, capsys):
        show.main(["--plain", str(based), "--out", str(tmp_path / "a.png"), "--count", "1"])
        assert "1 images with their labels" in capsys.readouterr().out
        audit.main(["--workers", "0", str(based)])
        assert "TinyDataModule reads no labelled files" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("base: none.yaml", r"top.yaml: base: no configuration .*none.yaml"),
            ("base: [a.yaml]", r"top.yaml: base is \['a.yaml'\], not the path or the name of one configuration"),
            ("base: synthetic", r"top.yaml: base: several configurations are called synthetic; give one of"),
            ("base: top.yaml", r"top.yaml: its base leads back .*: top.yaml -> top.yaml"),
            ("base: round.yaml", r"round.yaml: its base leads back .*: top.yaml -> round.yaml -> top.yaml"),
            ("base: list.yaml", r"top.yaml: its base .*list.yaml holds '\[1\]', not keys and values"),
            ("base: broken.yaml", r"broken.yaml is no YAML"),
        ],
    )
    def test_a_fault_of_a_base_is_one_line(self, tmp_path, text, message):
        path = tmp_path / "top.yaml"
        path.write_text(text)
        (tmp_path / "round.yaml").write_text("base: top.yaml")
        (tmp_path / "list.yaml").write_text("[1]")
        (tmp_path / "broken.yaml").write_text("a: [")
        with pytest.raises(ValueError, match=message) as error:
            load_config(path)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=message):
            resolved_config(["fit", "--config", str(path)])


def test_what_the_command_line_refuses_is_a_value_error(based, tmp_path, capsys):
    for more, message in ((["--trainer.max_epoch", "1"], r"unknown option --trainer.max_epoch \(did you mean --trainer.max_epochs"),
                          (["--data.batch_size", "x"], "data.batch_size: expected int, got x"),
                          (["--seed_everything", "x"], "seed_everything: expected bool or int, got x")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            resolved_config(["fit", "--config", str(based), *more])
    with pytest.raises(ValueError, match="is a pipeline; structseg pipeline conta/voc12 runs it"):
        resolved_config(["fit", "--config", "conta/voc12"])
    assert capsys.readouterr() == ("", "")
