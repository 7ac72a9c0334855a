"""The Python code in the README runs unchanged."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_loss_alone_in_a_plain_loop(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "lightning" not in code
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    values = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 50
    assert values[-1] < 0.7 * values[0]
