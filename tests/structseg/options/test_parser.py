import pytest

from structseg.options.parser import StructsegParser, shorten


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Parser key \"data\":\n  Errors:\n  - Problem with given class_path 'x.Y':\n      Option 'rot' is not accepted\n"
            "  - Expected a <class 'NoneType'>",
            "unknown option --data.rot (did you mean --data.root?)",
        ),
        (
            "unrecognized arguments: --trainer.max_epoch 1",
            "unknown option --trainer.max_epoch (did you mean --trainer.max_epochs?)",
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
            "data: missing root; give it on the command line or in --config: --data.root",
        ),
    ],
)
def test_a_nested_error_becomes_one_line(message, line):
    assert shorten(message) == line


def test_an_abbreviation_is_refused(capsys):
    parser = StructsegParser()
    parser.add_argument("--epochs", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--epo", "3"])
    assert "unknown option --epo" in capsys.readouterr().err
