import json

import pytest
import torch

from lightning_modules.schedules import PolyLR


def _rates(total_steps: int, steps: int, lr: float = 1.0, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = PolyLR(optimizer, total_steps, **settings)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_linear_decay_by_hand():
    assert _rates(4, 6, lr=8.0, power=1.0) == [8.0, 6.0, 4.0, 2.0, 0.0, 0.0, 0.0]


def test_stairs_by_hand_and_zero_from_the_end_on():
    # 5 is no multiple of 2: the third stair, at 1 - 4/5, is one step long.
    assert _rates(5, 6, power=2.0, every=2) == pytest.approx([1, 1, 0.36, 0.36, 0.04, 0, 0])
    assert _rates(5, 5, power=2.0, every=2)[-1] == 0


def test_meets_the_published_rates_exactly(golden):
    reference = json.loads((golden / "poly_lr.json").read_text())
    names = list(reference["groups"])
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": reference["groups"][name]} for name in names]
    optimizer = torch.optim.SGD(groups, lr=reference["lr"])
    schedule = PolyLR(optimizer, reference["iter_max"], power=reference["power"], every=reference["step"])
    rows = {row["k"]: [row[name] for name in names] for row in reference["table"]}
    seen = {}
    optimizer.step()
    for k in range(reference["iter_max"] + 1):
        if k in rows:
            seen[k] = schedule.get_last_lr()
        schedule.step()
    assert seen == rows


def test_state_goes_on_where_it_stopped():
    whole = _rates(10, 8)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    first = PolyLR(optimizer, 10)
    for _ in range(4):
        optimizer.step()
        first.step()
    again = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    second = PolyLR(again, 99, power=0.1)
    again.load_state_dict(optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert again.param_groups[0]["lr"] == whole[4]
    again.step()
    second.step()
    assert again.param_groups[0]["lr"] == whole[5]


@pytest.mark.parametrize(
    "settings", [{"total_steps": 0}, {"total_steps": 5, "power": 0}, {"total_steps": 5, "every": 0}]
)
def test_refuses_what_is_not_positive(settings):
    with pytest.raises(ValueError, match=r"total_steps \d, power [\d.]+, every \d; all have to be above 0"):
        PolyLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), **settings)
