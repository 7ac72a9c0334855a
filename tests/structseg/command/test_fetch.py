"""`structseg fetch`: what a fit would download, without the fit."""

import pytest

from structseg.command.fetch import main


def test_the_weights_are_named_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fasseg_unet/synthetic"])
    weights, caches = capsys.readouterr().out.splitlines()
    assert weights.startswith("initial weights: packaged efficientnet-lite0")
    assert "HF_HOME and TORCH_HOME" in caches
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["conta/synthetic"], ValueError, "is a pipeline"),
        (["fasseg_v2", "--data.root", "gone"], FileNotFoundError, "no folder gone"),
        (["fasseg_unet/synthetic", "--model.lr", "1"], ValueError, "model.optimizer.lr"),
        (["fasseg_unet/synthetic", "--model.network.encoder_name", "resnet18"], ValueError, "imagenet"),
        (["gone"], ValueError, "no configuration gone"),
    ],
)
def test_wrong_arguments_are_refused(args, error, message):
    with pytest.raises((error, SystemExit), match=message):
        main(args)
