import numpy as np
import pytest
from PIL import Image

from structseg.lightning_modules.drawing.charts import confusion_figure, loss_curves, read_curves


def test_curves_are_read_by_epoch_and_gaps_are_left_out(tmp_path):
    csv = tmp_path / "metrics.csv"
    csv.write_text(
        "epoch,step,train/loss_epoch,train/loss_step,val/loss,val/miou\n"
        "0,1,,0.9,,\n"
        "0,1,,,0.8,0.25\n"
        "0,1,1.0,,,\n"
        "1,3,,,nan,0.5\n"
        "1,3,0.5,,,\n"
        "1,4,0.4,,,\n"  # the epoch again, after a resume
        ",5,0.1,,,\n"
    )
    assert read_curves(csv) == {
        "train/loss": [(1, 1.0), (2, 0.4)],
        "val/loss": [(1, 0.8)],
        "val/miou": [(1, 0.25), (2, 0.5)],
    }


def test_curves_of_an_empty_file(tmp_path):
    csv = tmp_path / "metrics.csv"
    csv.write_text("")
    assert read_curves(csv) == {}


def test_a_chart_is_drawn_of_what_there_is(tmp_path):
    both, loss = tmp_path / "both.png", tmp_path / "loss.png"
    loss_curves({"train/loss": [(1, 2.0), (2, 1.0)], "val/miou": [(1, 0.5)]}, both)
    loss_curves({"val/loss": [(1, 2.0)], "lr": [(1, 0.1)]}, loss)
    with Image.open(both) as wide, Image.open(loss) as narrow:
        assert wide.width == 2 * narrow.width
    nothing = tmp_path / "nothing.png"
    loss_curves({"train/loss": [], "lr": [(1, 0.1)]}, nothing)
    assert not nothing.exists()


def test_the_confusion_matrix_is_in_percent_of_the_rows():
    confusion = np.array([[9, 1, 0], [0, 0, 0], [250, 250, 500]])
    figure = confusion_figure(confusion, ("sky", "sea", "land"))
    axes = figure.axes[0]
    cells = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    # rows are the truth; a class without pixels, and zeros, stay blank
    assert cells == {(0, 0): "90.0", (0, 1): "10.0", (2, 0): "25.0", (2, 1): "25.0", (2, 2): "50.0"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sky", "sea", "land"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "truth")


def test_many_classes_show_the_larger_figures_only():
    names = [f"class {i}" for i in range(81)]
    confusion = 985 * np.eye(81, dtype=int)
    confusion[0, 1:16] = 1  # 0.1 %
    confusion[1, 2] = 50  # 4.8 %
    texts = [text.get_text() for text in confusion_figure(confusion, names).axes[0].texts]
    assert len(texts) == 82
    assert "5" in texts


def test_the_matrix_fits_the_classes():
    with pytest.raises(ValueError, match=r"confusion matrix is \(2, 2\), but there are 3 classes"):
        confusion_figure(np.zeros((2, 2), int), ("a", "b", "c"))
