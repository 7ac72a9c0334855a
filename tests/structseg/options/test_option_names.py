"""Names of options, checked against the classes that a command names, before any of them is imported."""

import inspect

import pytest
import torch
from pytorch_lightning import Trainer

from structseg.datamodules.base import SegmentationDataModule
from structseg.lightning_modules.base import TrainedModule
from structseg.messages import UsageError
from structseg.options.class_index import class_modules, import_all
from structseg.options.config_files import find_config
from structseg.options.help_pages import help_page
from structseg.options.option_names import check_names, known_options, with_pairs
from structseg.options.signatures import parameters
from tests.structseg.command.test_light_commands import light

DEMO = ["--config", str(find_config("fasseg_unet/synthetic"))]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("model.lr", "model.optimizer.lr"),
        ("model.learning_rate", "model.optimizer.lr"),
        ("model.optimizer.learning_rate", "model.optimizer.lr"),
        ("model.encoder_name", "model.network.encoder_name"),
        ("encoder", "model.network.encoder_name"),
        ("data.image_size", "data.size"),
        ("image_size", "data.size"),
        ("data.batch", "data.batch_size"),
        ("workers", "data.num_workers"),
        ("trainer.gpus", "trainer.devices"),
        ("trainer.epochs", "trainer.max_epochs"),
        ("data.augmentation.rotat", "data.augmentation.rotate"),
        ("checkpoint.monitr", "checkpoint.monitor"),
        ("model.network.init_args.encoder_nam", "model.network.encoder_name"),
    ],
)
def test_a_misspelt_option_names_the_whole_of_the_nearest_one(given, meant):
    name = given.replace(".init_args", "")
    with pytest.raises(UsageError, match=rf"unknown option --{name} \(did you mean --{meant}\?\)"):
        check_names("fit", [*DEMO, f"--{given}", "1"])


@pytest.mark.parametrize("given", ["model.xyzzy", "model.network.num_classes", "xyzzy", "data.root"])
def test_no_guess_without_a_similar_name_and_arguments_from_the_code_are_no_options(given):
    with pytest.raises(UsageError, match=f"unknown option --{given}"):
        check_names("fit", [*DEMO, f"--{given}", "1"])


@pytest.mark.parametrize(
    "args",
    [
        ["--model.network", "ReadmeUNet", "--model.network.dropout", "0.1"],
        ["--model.network.init_args.encoder_name=resnet18"],
        ["--model.optimizer", "SGD", "--model.optimizer.momentum", "0.9"],
        ["--model.network", "mine.MyNetwork", "--model.network.anything", "1"],
        ["--model.network", '{"class_path": "ReadmeUNet", "init_args": {"dropout": 0.1}}'],
        ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.patience", "3"],
        ["--model.lr_scheduler", "CosineAnnealingLR", "--model.lr_scheduler.T_max", "9"],
        ["--trainer.max_epochs=-1", "--seed_everything", "3"],
    ],
    ids=lambda args: args[0],
)
def test_options_of_the_chosen_classes_are_accepted(args):
    assert check_names("fit", [*DEMO, *args]) == [*DEMO, *args]


def test_keys_of_a_configuration_are_options_too(tmp_path):
    def refused(text):
        (tmp_path / "c.yaml").write_text(f"base: {DEMO[1]}\n{text}")
        with pytest.raises(UsageError) as refusal:
            check_names("fit", ["--config", str(tmp_path / "c.yaml")])
        return str(refusal.value)

    assert "unknown option --data.rotate (did you mean --data.augmentation.rotate?)" in refused(
        "data: {init_args: {rotate: 3}}"
    )
    assert (
        refused("model: {loss: {class_path: ConsensusLoss}}")
        == "model.loss is next to class_path; move it below model.init_args"
    )
    assert "init_args.loss.alpha is next" in refused(
        "model: {init_args: {loss: {class_path: ConsensusLoss, alpha: 1}}}"
    )
    (tmp_path / "d.yaml").write_text("model: {loss: 3}")
    with pytest.raises(UsageError, match=r"model has no class_path \(loss\); expected class_path: NAME"):
        check_names("fit", ["--config", str(tmp_path / "d.yaml")])


def test_one_number_is_height_and_width():
    assert check_names("fit", [*DEMO, "--data.size", "64", "--data.train", "9"])[2:] == [
        "--data.size",
        "[64, 64]",
        "--data.train",
        "9",
    ]
    assert check_names("fit", [*DEMO, "--data.init_args.size=64"])[2:] == ["--data.init_args.size=[64, 64]"]
    config = {"data": {"class_path": "FASSEGDataModule", "init_args": {"size": 32, "batch_size": 4}}, "model": {"class_path": "STNiCNN", "init_args": {"window": 9}}}  # fmt: skip
    found = with_pairs(config)
    assert found["data"]["init_args"] == {"size": [32, 32], "batch_size": 4}
    assert found["model"]["init_args"] == {"window": [9, 9]}


def test_signatures_read_from_the_source_are_those_of_the_classes():
    """Of every class that a configuration may name; LightningCLI sees what is inherited through **kwargs likewise."""
    import_all()
    checked = 0
    for name, (module, *_) in class_modules().items():
        found, kind = parameters(name), getattr(__import__(module, fromlist=[name]), name, None)
        if isinstance(kind, type) and issubclass(kind, TrainedModule | SegmentationDataModule):
            assert found, name
        if found is None or not isinstance(kind, type) or not issubclass(kind, torch.nn.Module) or name[0] == "_":
            continue
        own = [p for p in inspect.signature(kind.__init__).parameters.values() if p.kind != p.VAR_KEYWORD][1:]
        assert {p.name for p in own} <= found.keys(), name
        assert all((found[p.name].default is None) == (p.default is p.empty) for p in own), name
        checked += 1
    assert checked > 30
    assert parameters("pytorch_lightning.Trainer").keys() == inspect.signature(Trainer.__init__).parameters.keys() - {
        "self"
    }
    assert parameters("torch.optim.AdamW").keys() == inspect.signature(torch.optim.AdamW.__init__).parameters.keys() - {
        "self"
    }


def test_the_options_of_a_method_are_those_of_the_parser():
    tree = {"model": {"class_path": "FASSEGUNet"}, "data": {"class_path": "FASSEGDataModule"}}
    found = known_options(tree)
    assert {
        "model.optimizer.weight_decay",
        "model.network.dropout",
        "data.augmentation.flip",
        "data.root",
    } <= found.keys()
    assert not {"model.network.num_classes", "model.optimizer.params", "model.label_space.classes"} & found.keys()


def test_help_of_classes_lists_ours_and_loads_nothing():
    code, out, _ = light("fit", "--model.help")
    names = [line.split()[0] for line in out.splitlines()[1:-1]]
    assert (code, names) == (
        0,
        ["ConsensusSegmenter", "CONTAClassifier", "CONTARelationNetwork", "CONTASegmenter", "FASSEGUNet", "STNiCNN"],
    )
    _, out, _ = light("fit", "--data.help", "FASSEGDataModule")
    assert "  --data.size (tuple[int, int]" in out
    assert "  --data.num_workers (int = 0)\n      processes that decode" in out
    assert help_page("fit", ["--model.optimizer.help"]) is None
    with pytest.raises(UsageError, match=r"there is no class FASSEGUnet \(did you mean FASSEGUNet"):
        help_page("fit", ["--model.help=FASSEGUnet"])
