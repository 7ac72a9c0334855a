import inspect

import pytest

from structseg.command.configs import _parser
from structseg.datamodules.base import SegmentationDataModule
from structseg.messages import UsageError
from structseg.options.arguments import as_options, check_data, split_further
from structseg.options.config_files import find_config
from structseg.options.subcommands import LIGHTNING, ROOTS, options_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a checkpoint's name, an image and a configuration."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.ckpt", "p.jpg", "q.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.yaml").write_text("model: X")
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "stages.yaml").write_text("stages: {}")
    (tmp_path / "trainer.yaml").write_text("trainer: [1]")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "a subcommand is missing"),
        (["--config", "c.yaml", "fit"], "subcommand comes first"),
        (["fit", "--trainer.max_epochs", "3", "--config", "c.yaml"], "give --config first"),
        (["fit", "--trainer.max_epochs=3", "-c=c.yaml"], "give --config first"),
        (["fit", "none"], "no configuration none"),
        (["fit", "list.yaml"], "not keys and values such as"),
        (["fit", "stages.yaml"], "structseg pipeline stages.yaml runs it"),
        (["fit", "trainer.yaml"], "trainer holds '\\[1\\]', not keys and values"),
    ],
)
def test_options_that_would_be_ignored_or_cannot_be_used_are_refused(here, args, message):
    with pytest.raises(UsageError, match=message):
        as_options(args)


@pytest.mark.parametrize(
    ("args", "same_as"),
    [
        (["fit", "c.yaml", "--data.root", "x"], ["fit", "--config", "c.yaml", "--data.root", "x"]),
        (["fit", "c.yaml", "--", "--data.root", "x"], ["fit", "--config", "c.yaml", "--data.root", "x"]),
        (["fit", "c.yaml", "-c=c.yaml", "--data.root=x"], ["fit", "--config", "c.yaml", "--config", "c.yaml", "--data.root=x"]),
        (["test", "a.ckpt", "--data.root", "x"], ["test", "--data.root", "x", "--ckpt_path", "a.ckpt"]),
        (["validate", "a.ckpt"], ["validate", "--ckpt_path", "a.ckpt"]),
        (["test", "c.yaml", "--ckpt_path", "a.ckpt"], ["test", "--config", "c.yaml", "--ckpt_path", "a.ckpt"]),
        (["predict", "a.ckpt", "--data.predict_split", "val"], ["predict", "--data.predict_split", "val", "--ckpt_path", "a.ckpt"]),
    ],
)  # fmt: skip
def test_positional_arguments_become_options(here, args, same_as):
    assert as_options(args) == same_as
    assert as_options(same_as) == same_as


def test_names_become_paths(here):
    path = str(find_config("fasseg_v2"))
    given = ["fit", "--config", "fasseg_v2", f"-c={path}", "--trainer.max_epochs", "3"]
    assert as_options(given) == ["fit", "--config", path, "--config", path, *given[4:]]
    assert as_options(["fit", "fasseg_v2"]) == ["fit", "--config", path]


@pytest.mark.parametrize("name", LIGHTNING)
def test_the_tables_agree_with_the_parsers(name):
    parser = _parser(name)._subcommands_action.choices[name]
    found = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    assert {option[2:].partition(".")[0].rstrip("+") for option in found} == ROOTS[name]
    defaults = parser.get_defaults(skip_validation=True)
    of_data = inspect.signature(SegmentationDataModule.__init__).parameters
    for option in options_of(name):
        key = option.name.removeprefix("--")
        if option.default is not None:
            known = of_data[key[5:]].default if key.startswith("data.") else defaults[key]
            assert option.default == str(known)
        elif not key.startswith(("data.", "model.")):
            assert option.name in found


@pytest.mark.parametrize(
    ("args", "own", "further"),
    [
        (["f.yaml", "--seed", "1"], ["f.yaml", "--seed", "1"], []),
        (["f.yaml", "--data.root", "x", "--seed", "1"], ["f.yaml", "--seed", "1"], ["--data.root", "x"]),
        (["f.yaml", "--data.root=x", "--", "--data.size", "1"], ["f.yaml"], ["--data.root=x", "--data.size", "1"]),
        (["--trainer.callbacks+", "X", "f.yaml", "--runs_dir", "r"], ["f.yaml", "--runs_dir", "r"], ["--trainer.callbacks+", "X"]),
        (["f.yaml", "--dry-rn"], ["f.yaml", "--dry-rn"], []),
        (["f.yaml", "--memory"], ["f.yaml"], ["--memory"]),
    ],
)  # fmt: skip
def test_further_options_need_no_dashes_before_them(args, own, further):
    assert split_further(args, ["--seed", "--runs_dir", "--dry-run"]) == (own, further)


def test_an_own_option_after_the_dashes_is_named():
    with pytest.raises(ValueError, match=r"--dry-run stands after --, .* give it before --"):
        split_further(["f.yaml", "--", "--data.root", "x", "--dry-run"], ["--seed", "--dry-run"])


def test_the_last_root_counts_and_later_configurations_override_earlier_ones(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(f"data: {{class_path: FASSEGDataModule, init_args: {{root: {tmp_path}}}}}")
    second.write_text("data: {class_path: FASSEGDataModule, init_args: {size: [32, 32]}}")
    both = ["fit", "--config", str(first), "--config", str(second)]
    check_data(both)
    check_data([*both, "--data.root", "gone", "--data.root", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no folder gone"):
        check_data([*both, "--data.root", str(tmp_path), "--data.root", "gone"])
