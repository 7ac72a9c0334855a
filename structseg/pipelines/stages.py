"""The stages of a pipeline: fits and predictions, which may be repeated in rounds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from structseg.messages import nearest

RUN_ID = "RUN_ID"  # placeholder for the id of a future run
BEFORE = "before."  # {before.NAME}: of the previous round
PLACE = re.compile(r"\{([\w./-]+)\}")
_ROUND = re.compile(r"round_(\d+)(?:_([\w-]+))?")


def round_and_arm(folder: str) -> tuple[int, str] | None:
    """Number and arm of a round from its folder's name, such as `round_0` or `round_1_sum`; None for another folder."""
    found = _ROUND.fullmatch(folder)
    return (int(found[1]), found[2] or "") if found else None


@dataclass(frozen=True)
class Stage:
    """A fit, or a prediction by the checkpoint of a fit.

    Attributes:
        name: of the stage, and of its folder in that of the pipeline.
        configs: its configurations, of which later ones override earlier ones.
        args: further arguments of `structseg fit`; `{stage}` stands for the best checkpoint of a stage, `{output}` for
            an output of a prediction.
        tests: further arguments of `structseg test` by the name of the test; "" is a test without a name.
        predicts: the fit whose checkpoint predicts; None for a fit.
        makes: outputs of a prediction, as paths in the folder of the pipeline; the first is `name`.
        makers: for each output of a prediction the stage that makes it.
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
        """The names in braces in the arguments."""
        return tuple(dict.fromkeys(name for arg in self.args for name in PLACE.findall(arg)))

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages whose checkpoints or outputs this one uses."""
        predicts = () if self.predicts is None else (self.predicts,)
        return tuple(dict.fromkeys((*predicts, *(self.makers.get(place, place) for place in self.places))))

    def args_with(self, paths: Mapping[str, str]) -> list[str]:
        """The arguments with the names in braces replaced by paths."""
        return [PLACE.sub(lambda place: paths[place[1]], arg) for arg in self.args]


@dataclass(frozen=True)
class Pipeline:
    """The stages in a pipeline's file.

    Attributes:
        path: the file.
        stages: by name, in the order in which they run.
        table: metrics to compare, as `structseg test` logs them, without `test/`.
        rounds: for the folder of each round the names of its stages.
        round_megabytes: approximate disk space of a round; 0: unknown.
        round_minutes: approximate time of a round on 2 CPU cores; 0: unknown.
    """

    path: Path
    stages: Mapping[str, Stage]
    table: tuple[str, ...]
    rounds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    round_megabytes: float = 0.0
    round_minutes: float = 0.0

    def needed(self, last: str | None) -> list[Stage]:
        """A stage and all that it depends on, in the order in which they run; for None every stage.

        Includes all stages of earlier rounds, so that each of these has a report.

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
        """The pipeline with only one of its arms.

        Args:
            arm: its name, or `all` for every arm; required where there are more than two.
            last: the stage to stop at, which names its arm itself.

        Raises:
            ValueError: there is no such arm (the message has the nearest), or an arm has to be chosen.
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
        """A text with the number of stages up to `last` and their approximate time."""
        stages = self.needed(last)
        rounds = {stage.name.partition("/")[0] for stage in stages} if self.rounds else set()
        known = bool(self.round_minutes and rounds)
        hours = len(rounds) * self.round_minutes / 60
        return f"{len(stages)} stages" + f", about {hours:.1f} hours on 2 CPU cores" * known


def pipeline_folder(path: Path, seed: int, runs_dir: Path) -> Path:
    """The folder of a pipeline's stages: `RUNS/FOLDER_FILE/SEED`, as files of several methods have the same name."""
    return runs_dir / f"{path.resolve().parent.name}_{path.stem}" / str(seed)


def unroll(
    stages: Mapping[str, Stage], rounds: int, arms: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, tuple[Stage, ...]]:
    """The stages of all rounds: of `round_0`, which all arms share, and of the later rounds of each arm.

    With 0 rounds, named arms differ from round 0 on: `round_0_ARM`.

    Args:
        stages: of one round.
        rounds: number of rounds after round 0.
        arms: further arguments of stages in those rounds, `ARM: {STAGE: arguments}`; the arm "" has no name.

    Returns:
        The stages by folder, `round_0`, `round_1_ARM`, ...; each stage is named `FOLDER/STAGE`.
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
    """A stage's arguments with those of an arm; those of a prediction itself come after those of its fit."""
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
