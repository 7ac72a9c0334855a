import pytest

from structseg.command.arguments import as_options
from structseg.command.config_files import find_config
from structseg.command.parser import StructsegParser, import_rooms, shorten


@pytest.fixture(scope="module", autouse=True)
def _rooms():
    import_rooms()


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Parser key \"data\":\n  Errors:\n  - Problem with given class_path 'x.Y':\n      Option 'rot' is not accepted\n"
            "  - Expected a <class 'NoneType'>",
            "unknown option data.rot (did you mean root?)",
        ),
        (
            "unrecognized arguments: --trainer.max_epoch 1",
            "unknown option trainer.max_epoch (did you mean max_epochs?)",
        ),
        (
            'Parser key "data":\n - Parser key "size":\n Expected a <class \'tuple\'>. Got value: 3\n',
            "data.size: expected tuple, got 3",
        ),
        (
            "Parser key \"model\":\n  - Expected a dot import path string: FASSEGUnet\n  - Expected a <class 'NoneType'>",
            "model: there is no class FASSEGUnet (did you mean FASSEGUNet?)",
        ),
        (
            "Parser key \"data\":\n  the following arguments are required: root\n  - Expected a <class 'NoneType'>",
            "data: missing root; give it on the command line or in --config",
        ),
    ],
)
def test_a_nested_complaint_becomes_one_line(message, line):
    assert shorten(message) == line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "a subcommand is missing"),
        (["ft"], "did you mean fit"),
        (["--config", "x.yaml", "fit"], "subcommand comes first"),
        (["fit", "--trainer.max_epochs", "3", "--config", "x.yaml"], "give --config first"),
        (["fit", "--trainer.max_epochs=3", "-c=x.yaml"], "give --config first"),
    ],
)
def test_arguments_that_would_be_lost_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        as_options(args)


def test_the_right_order_passes_and_names_become_paths():
    path = str(find_config("fasseg_v2"))
    given = ["fit", "--config", "fasseg_v2", f"-c={path}", "--trainer.max_epochs", "3"]
    assert as_options(given) == ["fit", "--config", path, *given[3:]]


def test_an_abbreviation_is_refused(capsys):
    parser = StructsegParser()
    parser.add_argument("--epochs", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--epo", "3"])
    assert "unknown option epo" in capsys.readouterr().err
