import json

import pytest
import torch

from structseg.lightning_modules.schedules import OneCycle, PolyLR


def _rates(total_steps: int, steps: int, lr: float = 1.0, kind=PolyLR, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = kind(optimizer, total_steps, **settings)
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
    second = PolyLR(again, power=0.1)
    again.load_state_dict(optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert again.param_groups[0]["lr"] == whole[4]
    again.step()
    second.step()
    assert again.param_groups[0]["lr"] == whole[5]


def test_a_resumed_schedule_has_its_own_number_of_steps():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    longer = PolyLR(optimizer, 40, power=1.0)
    longer.load_state_dict({**longer.state_dict(), "total_steps": 10, "last_epoch": 9})
    optimizer.step()
    longer.step()
    assert optimizer.param_groups[0]["lr"] == 0.75


@pytest.mark.parametrize(
    "settings", [{"total_steps": 0}, {"total_steps": 5, "power": 0}, {"total_steps": 5, "every": 0}]
)
def test_refuses_what_is_not_positive(settings):
    with pytest.raises(ValueError, match=r"total_steps \d, power [\d.]+, every \d; all have to be above 0"):
        PolyLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), **settings)


def test_one_cycle_by_hand():
    # Up over 3 of 8 steps, then down over the 4 that are left, and on at the lowest rate.
    rates = _rates(8, 10, lr=2.0, kind=OneCycle, warmup=0.375, start=25, end=1e4)
    assert rates[0] == pytest.approx(2 / 25)
    assert rates[3] == pytest.approx(2)
    assert rates[5] == pytest.approx(2 * (1 + 1e-4) / 2)
    assert rates[7:] == pytest.approx([2e-4] * 4)
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_one_cycle_without_warmup_starts_at_the_top():
    assert _rates(4, 4, kind=OneCycle, warmup=0.0, end=100)[0::3] == pytest.approx([1, 0.01])


@pytest.mark.parametrize("kind", [PolyLR, OneCycle])
def test_total_steps_may_come_later_but_not_after_the_first_step(kind):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = kind(optimizer)
    first = schedule.get_last_lr()
    schedule.total_steps = 4
    optimizer.step()
    schedule.step()
    assert [*first, *schedule.get_last_lr()] == pytest.approx(_rates(4, 1, kind=kind))
    late = kind(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    late.optimizer.step()
    with pytest.raises(ValueError, match=f"{kind.__name__} was stepped without total_steps; give it their number"):
        late.step()


@pytest.mark.parametrize(
    "settings", [{"total_steps": 0}, {"warmup": 1.0}, {"warmup": -0.1}, {"start": 0.5}, {"end": 0.5}]
)
def test_one_cycle_refuses_what_is_out_of_range(settings):
    with pytest.raises(ValueError, match=r"total_steps \w+, warmup [-.\d]+, start [.\d]+, end [.\d]+; a positive"):
        OneCycle(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), **settings)
