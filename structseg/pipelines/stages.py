"""The stages of a pipeline: fits, predictions by their checkpoints, and rounds of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from structseg.messages import nearest

RUN_ID = "RUN_ID"  # stands for the id of a run that does not exist yet
BEFORE = "before."  # {before.NAME}: of the round before
PLACE = re.compile(r"\{([\w./-]+)\}")
_ROUND = re.compile(r"round_(\d+)(?:_([\w-]+))?")


def round_and_arm(folder: str) -> tuple[int, str] | None:
    """Number and arm of a round by the name of its folder, `round_0` or `round_1_sum`; None for another folder."""
    found = _ROUND.fullmatch(folder)
    return (int(found[1]), found[2] or "") if found else None


@dataclass(frozen=True)
class Stage:
    """A fit, or a prediction by the checkpoint of a fit.

    Attributes:
        name: of the stage; its folder is `name` in that of the pipeline.
        configs: the configurations that its arguments come on top of, the later over the earlier.
        args: what `structseg fit` gets besides; `{stage}` is the best checkpoint of that stage, `{made}` what a
            prediction has made.
        tests: further arguments of `structseg test` by the name of the test; "" = one without a name.
        predicts: the fit whose checkpoint predicts; None = this is a fit itself.
        makes: what a prediction leaves, by path in the folder of the pipeline; the first is `name`.
        makers: the stage that makes it, for each place that the arguments name.
        round: number of the round, 0 without rounds.
    """

    name: str
    configs: tuple[Path, ...]
    args: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    predicts: str | None = None
    makes: tuple[str, ...] = ()
    makers: Mapping[str, str] = field(default_factory=dict)
    round: int = 0

    @property
    def places(self) -> tuple[str, ...]:
        """What the arguments name in braces."""
        return tuple(dict.fromkeys(name for arg in self.args for name in PLACE.findall(arg)))

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages whose checkpoints or artefacts this one takes."""
        predicts = () if self.predicts is None else (self.predicts,)
        return tuple(dict.fromkeys((*predicts, *(self.makers.get(place, place) for place in self.places))))

    def args_with(self, paths: Mapping[str, str]) -> list[str]:
        """The arguments with the paths that stand for the places which they name."""
        return [PLACE.sub(lambda place: paths[place[1]], arg) for arg in self.args]


@dataclass(frozen=True)
class Pipeline:
    """A file of stages.

    Attributes:
        path: the file.
        stages: by name, in the order in which they run.
        table: metrics to compare, as `structseg test` logs them, without `test/`.
        rounds: folders of the rounds and the names of their stages.
        round_megabytes: what a round takes on disk, about; 0 = nobody said.
        round_minutes: what a round takes on 2 CPU cores, about; 0 = nobody said.
    """

    path: Path
    stages: Mapping[str, Stage]
    table: tuple[str, ...]
    rounds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    round_megabytes: float = 0.0
    round_minutes: float = 0.0

    def needed(self, last: str | None) -> list[Stage]:
        """A stage and all that it builds on, in the order in which they run; None = every stage.

        The rounds before that of the stage are whole, so that each has its report.

        Raises:
            ValueError: there is no such stage; the message has the nearest name.
        """
        if last is None:
            return list(self.stages.values())
        if last not in self.stages:
            hint = nearest(last, self.stages) or f"; there are {', '.join(self.stages)}"
            raise ValueError(f"{self.path} has no stage {last}{hint}")
        earlier = [name for folder in self._rounds_before(last) for name in self.rounds[folder]]
        wanted, pending = {last, *earlier}, [last]
        while pending:
            new = set(self.stages[pending.pop()].needs) - wanted
            wanted |= new
            pending += new
        return [stage for name, stage in self.stages.items() if name in wanted]

    def _rounds_before(self, stage: str) -> list[str]:
        """The folders of the earlier rounds of the same arm."""
        number, arm = (round_and_arm(stage.partition("/")[0]) if self.rounds else None) or (0, "")
        return [f"round_{n}_{arm}" if n and arm else f"round_{n}" for n in range(number)]

    def of_arm(self, arm: str | None, last: str | None = None) -> Pipeline:
        """Without the other arms.

        Args:
            arm: its name, or `all` for every one; None: it has to be given where there are more than two.
            last: the stage to stop at, which names its arm itself.

        Raises:
            ValueError: there is no such arm (the message has the nearest), or one of many has to be chosen.
        """
        arm_of = {folder: (round_and_arm(folder) or (0, ""))[1] for folder in self.rounds}
        arms = list(dict.fromkeys(filter(None, arm_of.values())))
        if arm is None and last is None and len(arms) > 2:
            raise ValueError(
                f"{self.path} has {len(arms)} arms ({', '.join(arms)}), together {self.size()}; "
                f"choose one, such as --arm {arms[0]}, or --arm all"
            )
        if arm is None or (arm == "all" and arms):
            return self
        if arm not in arms:
            known = nearest(arm, arms) or (f"; there are {', '.join(arms)}" if arms else "; it has no arms")
            raise ValueError(f"{self.path} has no arm {arm}{known}")
        rounds = {name: own for name, own in self.rounds.items() if arm_of[name] in ("", arm)}
        stages = {name: self.stages[name] for own in rounds.values() for name in own}
        return replace(self, rounds=rounds, stages=stages)

    def size(self, last: str | None = None) -> str:
        """How many stages there are up to one of them, and how long they take, in words."""
        stages = self.needed(last)
        rounds = {stage.name.partition("/")[0] for stage in stages} if self.rounds else set()
        known = bool(self.round_minutes and rounds)
        hours = len(rounds) * self.round_minutes / 60
        return f"{len(stages)} stages" + f", about {hours:.1f} hours on 2 CPU cores" * known


def pipeline_folder(path: Path, seed: int, runs_dir: Path) -> Path:
    """Where the stages of a pipeline file live: `RUNS/FOLDER_FILE/SEED`, as files of several methods share a name."""
    return runs_dir / f"{path.resolve().parent.name}_{path.stem}" / str(seed)


def unroll(
    stages: Mapping[str, Stage], rounds: int, arms: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, tuple[Stage, ...]]:
    """The stages of `round_0`, which all arms share, and of `round_1` to `round_ROUNDS` of each arm.

    With 0 rounds, arms that have names differ from round 0 on: `round_0_ARM`.

    Args:
        stages: of one round.
        rounds: how many follow on round 0.
        arms: further arguments of stages in those rounds, `ARM: {STAGE: arguments}`; the arm "" has no name.

    Returns:
        By folder: `round_0`, `round_1_ARM`, ...; each stage is named `FOLDER/STAGE`.
    """
    of_arms = {arm: [replace(s, args=_with(s, stages, more)) for s in stages.values()] for arm, more in arms.items()}
    if not rounds and set(arms) != {""}:
        folders = {f"round_0_{arm}": own for arm, own in of_arms.items()}
        return {folder: tuple(_in_round(stage, folder, "", 0) for stage in own) for folder, own in folders.items()}
    found = {"round_0": tuple(_in_round(stage, "round_0", "", 0) for stage in stages.values())}
    for arm, own in of_arms.items():
        before = "round_0"
        for number in range(1, rounds + 1):
            folder = f"round_{number}_{arm}" if arm else f"round_{number}"
            found[folder] = tuple(_in_round(stage, folder, before, number) for stage in own)
            before = folder
    return found


def _with(stage: Stage, stages: Mapping[str, Stage], more: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A stage's arguments with those of an arm; what a prediction says of itself stays behind what is its fit's."""
    shared = stage.args if stage.predicts is None else stages[stage.predicts].args
    return (*shared, *more.get(stage.predicts or "", ()), *stage.args[len(shared) :], *more.get(stage.name, ()))


def _in_round(stage: Stage, folder: str, before: str, number: int) -> Stage:
    def placed(place: re.Match[str]) -> str:
        name = place[1]
        return f"{{{before}/{name.removeprefix(BEFORE)}}}" if name.startswith(BEFORE) else f"{{{folder}/{name}}}"

    return replace(
        stage,
        name=f"{folder}/{stage.name}",
        args=tuple(PLACE.sub(placed, arg) for arg in stage.args),
        predicts=stage.predicts and f"{folder}/{stage.predicts}",
        makes=tuple(f"{folder}/{made}" for made in stage.makes),
        makers={
            f"{where}/{made}": f"{where}/{by}"
            for where in filter(None, (folder, before))
            for made, by in stage.makers.items()
        },
        round=number,
    )
