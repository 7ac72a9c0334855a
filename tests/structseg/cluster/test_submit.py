"""SLURM jobs with a fake sbatch: content and effect of the scripts, refused options, dependent jobs."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from structseg.cluster import submit
from structseg.cluster.submit import TEMPLATES, Job, jobs, main, parsed, script, seconds_of

_SBATCH = """#!/bin/bash
python3 - "$@" >> calls.jsonl <<'PYTHON'
import json, sys
path = next(word for word in sys.argv[1:] if word.endswith(".sbatch"))
print(json.dumps({"args": sys.argv[1:], "script": open(path).read()}))
PYTHON
number=$((100 + $(wc -l < calls.jsonl)))
if [ "$number" -gt "${REFUSED_FROM:-999}" ]; then
  echo 'sbatch: error: Invalid generic resource (gres) specification' >&2
  exit 1
fi
echo "$number;lab"
"""


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def here(tmp_path, tiny_config, monkeypatch):
    """A folder with a configuration, tiny.yaml, a pipeline of two stages, stepwise.yaml, and a stand-in sbatch."""
    (tmp_path / "stepwise.yaml").write_text("config: tiny.yaml\nstages: {coarse: , joint: {test: false}}\n")
    executable(tmp_path / "bin" / "sbatch", _SBATCH)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(folder):
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def options_of(text):
    """What a script asks sbatch for."""
    words = [shlex.split(line, comments=False)[1] for line in text.splitlines() if line.startswith("#SBATCH ")]
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


def what_runs(folder, text, monkeypatch, **slurm):
    """The command that a script comes to, as structseg sees it, and the options of srun."""
    executable(folder / "bin" / "srun", '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    fake = '#!/bin/bash\nprintf "%s\\n" "launch=${STRUCTSEG_LAUNCH:-}" "wandb=$WANDB_MODE" "$@"\n'
    executable(folder / "bin" / "structseg", fake)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "WANDB"))}
    done = subprocess.run(["bash"], input=text, env={**env, **slurm}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


class TestScripts:
    @pytest.mark.parametrize("path", sorted(TEMPLATES.iterdir()), ids=lambda path: path.name)
    def test_each_can_be_submitted_as_it_is(self, path):
        assert subprocess.run(["bash", "-n", path]).returncode == 0
        text = path.read_text()
        assert text.startswith("#!/bin/bash\n")
        assert "set -euo pipefail\n" in text
        if path.suffix == ".sbatch":
            found = options_of(text)
            assert found["signal"] == "USR1@120"
            assert {"requeue", "open-mode", "output", "time"} <= set(found)
            lines = text.splitlines()
            last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
            assert all(line.startswith("#") for line in lines[:last])  # sbatch reads no further than the first command

    def test_without_a_configuration_it_asks_for_one(self):
        for path in TEMPLATES.iterdir():
            done = subprocess.run(["bash", path], capture_output=True, text=True, cwd="/")
            assert done.returncode != 0
            assert "give a" in done.stderr

    def test_options_take_the_place_of_the_templates(self):
        text = script("one_node.sbatch", {"time": "30", "gpus-per-node": None, "mem": "8G"}, ["a b.yaml"], "x\ny")
        before = options_of((TEMPLATES / "one_node.sbatch").read_text())
        assert options_of(text) == {
            **{k: v for k, v in before.items() if k != "gpus-per-node"},
            "time": "30",
            "mem": "8G",
        }
        assert text.splitlines()[1] == "# Written by: x y"  # no second line that would be run
        assert "\nset -- 'a b.yaml'\n" in text

    def test_a_fit_on_two_nodes(self, here, monkeypatch):
        monkeypatch.setattr(sys, "executable", str(here / "bin" / "python"))
        executable(here / "bin" / "structseg", "")
        given = parsed(["tiny.yaml", "--nodes", "2", "--gpus-per-node", "4", "--mem", "32G", "--grace", "60"])
        (job,) = jobs(given, ["--trainer.max_epochs", "7"], "structseg submit tiny.yaml")
        found = options_of(job.text)
        assert job.path == Path("runs/slurm/tiny.sbatch")
        assert found == {
            "job-name": "tiny", "nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "1",
            "time": "04:00:00", "signal": "USR1@60", "requeue": "", "open-mode": "append", "mem": "32G",
            "output": f"{here}/runs/slurm/tiny-%j.out", "chdir": str(here),
        }  # fmt: skip
        asked = {"SLURM_GPUS_PER_NODE": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"}
        assert what_runs(here, job.text, monkeypatch, **asked) == [
            "launch=", "wandb=offline", "fit", "--config", "tiny.yaml", "--resume", "auto", "--trainer.accelerator", "gpu",
            "--trainer.devices", "4", "--trainer.num_nodes", "2", "--trainer.max_epochs", "7",
        ]  # fmt: skip

    def test_a_fit_on_one_cpu_keeps_its_accelerator_and_the_users_wandb_mode(self, here, monkeypatch):
        monkeypatch.setattr(sys, "executable", str(here / "bin" / "python"))
        executable(here / "bin" / "structseg", "")
        given = parsed(["tiny.yaml", "--gpus-per-node", "0", "--runs_dir", "else where"])
        (job,) = jobs(given, ["--data.batch_size", "2"], "")
        assert "gpus-per-node" not in options_of(job.text)
        assert options_of(job.text)["output"] == f"{here}/else where/slurm/tiny-%j.out"
        assert what_runs(here, job.text, monkeypatch, WANDB_MODE="online") == [
            "launch=", "wandb=online", "fit", "--config", "tiny.yaml", "--resume", "auto", "--trainer.devices", "1",
            "--runs_dir", "else where", "--data.batch_size", "2",
        ]  # fmt: skip

    def test_the_number_in_an_array_is_the_seed(self, here, monkeypatch):
        monkeypatch.setattr(sys, "executable", str(here / "bin" / "python"))
        executable(here / "bin" / "structseg", "")
        (job,) = jobs(parsed(["tiny.yaml", "--seeds", "0-4%2", "--gpus-per-node", "0"]), [], "")
        found = options_of(job.text)
        assert (found["array"], found["output"]) == ("0-4%2", f"{here}/runs/slurm/tiny-%A_%a.out")
        task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "1"}
        runs = what_runs(here, job.text, monkeypatch, **task)
        assert runs[runs.index("--seed_everything") + 1] == "3"
        assert runs[runs.index("--config") + 1 :][:1] == ["tiny.yaml"]

    def test_a_core_for_each_worker_of_the_loader(self, here):
        (job,) = jobs(parsed(["tiny.yaml"]), ["--data.num_workers", "5"], "")
        assert options_of(job.text)["cpus-per-task"] == "6"
        (job,) = jobs(parsed(["tiny.yaml", "--cpus-per-task", "2"]), ["--data.num_workers", "5"], "")
        assert options_of(job.text)["cpus-per-task"] == "2"

    @pytest.mark.parametrize("tasks", ["1", "4"])
    def test_a_stage_of_a_pipeline(self, here, monkeypatch, tasks):
        monkeypatch.setattr(sys, "executable", str(here / "bin" / "python"))
        executable(here / "bin" / "structseg", "")
        first, *_, last = jobs(parsed(["stepwise.yaml", "--gpus-per-node", "0"]), ["--data.seed", "1"], "")
        layout = {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "2"}
        many = ["--trainer.devices", "2", "--trainer.num_nodes", "2"] if tasks == "4" else []
        rest = ["--seed", "0", "--", *many, "--data.seed", "1"]
        launch = "launch=srun --kill-on-bad-exit=1 --cpus-per-task=1"
        expected = [launch, "wandb=offline", "pipeline", "stepwise.yaml", "--runs_dir", "runs"]
        assert what_runs(here, first.text, monkeypatch, **layout) == [*expected, "--until", "coarse", *rest]
        assert what_runs(here, last.text, monkeypatch, **layout, SLURM_ARRAY_TASK_ID="0") == [*expected, *rest]


class TestRefused:
    @pytest.mark.parametrize(
        ("time", "seconds"),
        [("30", 1800), ("2:30", 150), ("4:00:00", 14400), ("1-12", 129600), ("1-12:30", 131400), ("1-0:0:1", 86401)],
    )
    def test_times_as_slurm_reads_them(self, time, seconds):
        assert seconds_of(time) == seconds

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--time", "4h"], "--time is 4h; expected hours:minutes:seconds"),
            (["--time", "0:00"], "--time is 0:00, which leaves no time"),
            (["--time", "1-2:3:4:5"], "--time is 1-2:3:4:5; expected"),
            (["--time", "3"], "--time 3 is not longer than --grace 120 and a minute"),
            (["--nodes", "0"], "--nodes is 0; expected a whole number from 1"),
            (["--gpus-per-node", "-1"], "--gpus-per-node is -1; expected a whole number from 0, or TYPE:NUMBER"),
            (["--cpus-per-task", "0"], "--cpus-per-task is 0"),
            (["--grace", "99999", "--time", "9-0"], "--grace is 99999; SLURM takes 65535"),
            (["--mem", "lots"], "--mem is lots; expected"),
            (["--seeds", "0..4"], "--seeds is 0..4; expected 0-4"),
            (["--job-name", "bash"], "--job-name is bash; use"),
            (["--job-name", "a b"], "--job-name is a b; use"),
            (["--partition", "a\nb"], r"--partition is 'a\\nb'; expected one line"),
            (["--sedes", "0-4"], r"unknown option --sedes \(did you mean --seeds\?\)"),
            (["--batch_size", "2"], r"unknown option --batch_size \(did you mean --data.batch_size\?\)"),
            (["--lr", "2"], r"unknown option --lr \(did you mean --model.optimizer.lr\?\)"),
            (["--nodes", "0", "--mem", "x"], "--nodes is 0; .*; --mem is x; expected"),
        ],
    )
    def test_an_option(self, here, options, message):
        with pytest.raises(ValueError, match=message) as error:
            main(["tiny.yaml", *options])
        assert "\n" not in str(error.value)
        assert not (here / "runs").exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--trainer.devices=2"], "--trainer.devices is set by submit; give --gpus-per-node instead"),
            (["--config", "other.yaml"], "--config is set by submit; give CONFIG instead"),
            (["--resume", "never"], "--resume is set by submit"),
            (["--data.batch_sise", "2"], r"unknown option --data.batch_sise \(did you mean --data.batch_size\?\)"),
            (["--data.batch_size", "many"], "batch_size: expected int, got many"),
        ],
    )
    def test_a_further_argument(self, here, more, message):
        with pytest.raises(ValueError, match=message):
            main(["tiny.yaml", "--", *more])

    def test_a_seed_besides_seeds(self, here):
        jobs(parsed(["tiny.yaml"]), ["--seed_everything", "3"], "")
        with pytest.raises(ValueError, match="--seed_everything is set by submit; give --seeds instead"):
            jobs(parsed(["tiny.yaml", "--seeds", "0-1"]), ["--seed_everything", "3"], "")

    def test_a_configuration(self, here):
        with pytest.raises(FileNotFoundError, match=r"no configuration none\.yaml"):
            main(["none.yaml"])
        (here / "bad.yaml").write_text("a: [")
        with pytest.raises(ValueError, match=r"bad\.yaml is no YAML"):
            main(["bad.yaml"])
        (here / "bad.yaml").write_text("config: tiny.yaml\nstages: {a: {modle: {}}}")
        with pytest.raises(ValueError, match=r"unknown key modle \(did you mean model\?\)"):
            main(["bad.yaml"])

    def test_a_pipeline_of_many_arms_or_with_a_test_after_it(self, here):
        with pytest.raises(ValueError, match=r"arms \(none, sum, .* choose one, such as --arm none"):
            main(["conta/voc_photos", "--dry-run"])
        with pytest.raises(ValueError, match="--then test is for a single fit"):
            main(["stepwise.yaml", "--then", "test"])


class TestSites:
    def test_other_options_go_to_sbatch(self, here):
        words = [
            "--qos",
            "high",
            "--constraint=a100",
            "--exclusive",
            "--gpus-per-node",
            "a100:2",
            "--comment",
            "two words",
        ]
        (job,) = jobs(parsed(["tiny.yaml", *words]), [], "")
        found = options_of(job.text)
        assert (found["qos"], found["constraint"], found["exclusive"]) == ("high", "a100", "")
        assert (found["gpus-per-node"], found["ntasks-per-node"], found["comment"]) == ("a100:2", "2", "two words")
        (job,) = jobs(parsed(["tiny.yaml", "--gres", "gpu:a100:1"]), [], "")
        assert "gpus-per-node" not in options_of(job.text)

    def test_the_site_file_is_read_and_the_command_line_overrides_it(self, here, monkeypatch):
        monkeypatch.setattr(sys, "executable", str(here / "bin" / "python"))
        executable(here / "bin" / "structseg", "")
        (here / "slurm.yaml").write_text("partition: gpu\ntime: 1:30:00\nsetup: setup.sh\ngpus-per-node: 0\n")
        (here / "setup.sh").write_text("export WANDB_MODE=online\n")
        (job,) = jobs(parsed(["tiny.yaml", "--partition", "long"]), [], "")
        found = options_of(job.text)
        assert (found["partition"], found["time"], "gpus-per-node" in found) == ("long", "1:30:00", False)
        assert what_runs(here, job.text, monkeypatch)[1] == "wandb=online"
        (here / "slurm.yaml").write_text("[1]")
        with pytest.raises(ValueError, match=r"slurm.yaml: expected options of submit and sbatch"):
            parsed(["tiny.yaml"])

    @pytest.mark.parametrize("seeds", [[], ["--seeds", "0-4"]])
    def test_a_fit_that_is_tested_afterwards(self, here, monkeypatch, seeds):
        monkeypatch.setattr(sys, "executable", str(here / "bin" / "python"))
        executable(here / "bin" / "structseg", "")
        (job,) = jobs(parsed(["tiny.yaml", "--then", "test", *seeds, "--gpus-per-node", "0"]), [], "")
        task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "1"}
        runs = what_runs(here, job.text, monkeypatch, **task)
        run_id = runs[runs.index("--run_id") + 1]
        assert run_id.endswith("_3" if seeds else "")
        test = runs[runs.index("test") :]
        assert test == [
            "test",
            f"runs/tiny/{run_id}/checkpoints/best.ckpt",
            "--trainer.devices",
            "1",
            "--trainer.num_nodes",
            "1",
        ]


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_options_of_fit_need_no_dashes_before_them(here, capsys, dashes):
    main(["tiny.yaml", *dashes, "--data.batch_size", "2", *([] if dashes else ["--dry-run"])])
    assert "tiny.yaml --data.batch_size 2" in capsys.readouterr().out


class TestSubmitted:
    def test_it_is_shown_first_then_written_and_submitted(self, here, capsys):
        main(["tiny.yaml", "--gpus-per-node", "0", "--job-name", "first"])
        shown = capsys.readouterr().out
        (call,) = calls(here)
        assert call["args"] == ["--parsable", "runs/slurm/first.sbatch"]
        assert call["script"] == Path("runs/slurm/first.sbatch").read_text()
        assert shown == f"{call['script']}# sbatch --parsable runs/slurm/first.sbatch\nfirst: job 101\n"
        assert "# Written by: structseg submit tiny.yaml --gpus-per-node 0 --job-name first\n" in shown

    def test_a_dry_run_leaves_nothing(self, here, capsys):
        main(["tiny.yaml", "--dry-run"])
        shown = capsys.readouterr().out
        assert not (here / "runs").exists()
        assert not (here / "calls.jsonl").exists()
        assert subprocess.run(["bash", "-n"], input=shown, text=True).returncode == 0
        assert "--dry-run" not in shown  # the script's head says how to get it submitted

    def test_each_job_of_a_pipeline_waits_for_the_one_before(self, here, capsys):
        submit.submit([Job(Path(f"s/{name}.sbatch"), name, name, after) for name, after in
                       (("a", None), ("b", "afterok"), ("c", "afterok"))])  # fmt: skip
        waits = ["--kill-on-invalid-dep=yes"]
        assert [call["args"] for call in calls(here)] == [
            ["--parsable", "s/a.sbatch"],
            ["--parsable", "--dependency=afterok:101", *waits, "s/b.sbatch"],
            ["--parsable", "--dependency=afterok:102", *waits, "s/c.sbatch"],
        ]
        assert [call["script"] for call in calls(here)] == ["a", "b", "c"]
        assert capsys.readouterr().out == "a: job 101\nb: job 102\nc: job 103\n"

    def test_the_jobs_of_a_pipeline(self, here):
        (here / "p.yaml").write_text("config: tiny.yaml\nstages: {one: , two: {test: false}, three: {test: false}}\n")
        found = jobs(parsed(["p.yaml"]), [], "")
        name = f"{here.name}_p"
        assert [(job.title, job.after, job.path.name) for job in found] == [
            ("one", None, f"{name}-one.sbatch"), ("two", "afterok", f"{name}-two.sbatch"),
            ("three", "afterok", f"{name}-three.sbatch"),
        ]  # fmt: skip
        found = jobs(parsed(["p.yaml", "--seeds", "0,2"]), [], "")
        assert [job.after for job in found] == [None, "aftercorr", "aftercorr"]  # each seed for itself
        assert {options_of(job.text)["array"] for job in found} == {"0,2"}
        (here / "q.yaml").write_text("base: p.yaml\ndata: {batch_size: 2}\n")
        assert [job.title for job in jobs(parsed(["q.yaml"]), [], "")] == ["one", "two", "three"]

    def test_an_error_of_sbatch(self, here, monkeypatch):
        monkeypatch.setenv("REFUSED_FROM", "101")
        found = [Job(Path("s/a.sbatch"), "a", "a"), Job(Path("s/b.sbatch"), "b", "b", "afterok")]
        with pytest.raises(RuntimeError) as error:
            submit.submit(found)
        assert str(error.value) == (
            "sbatch refused s/b.sbatch: Invalid generic resource (gres) specification; a cluster without GPUs takes "
            "--gpus-per-node 0; in the queue already: 101 (scancel removes them)"
        )

    def test_without_sbatch_the_script_is_kept(self, here, monkeypatch):
        monkeypatch.setenv("PATH", str(here / "empty"))
        with pytest.raises(
            RuntimeError, match=r"no sbatch on this machine; submit on a machine with SLURM: runs/slurm/tiny\.sb"
        ):
            main(["tiny.yaml"])
        assert Path("runs/slurm/tiny.sbatch").is_file()

    def test_pipeline_sh_does_the_same_by_hand(self, here):
        listing = "one: to be run\\n    structseg fit x: y\\ntwo: finished\\n"
        executable(here / "bin" / "structseg", f"#!/bin/bash\nprintf '{listing}'\n")
        done = subprocess.run(
            ["bash", TEMPLATES / "pipeline.sh", "p.yaml", "--", "--x", "1"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "one: job 101\ntwo: job 102\n"
        path = str(TEMPLATES / "pipeline_stage.sbatch")
        assert [call["args"] for call in calls(here)] == [
            ["--parsable", "--job-name=one", path, "p.yaml", "--until", "one", "--", "--x", "1"],
            ["--parsable", "--job-name=two", "--dependency=afterok:101", "--kill-on-invalid-dep=yes", path, "p.yaml",
             "--until", "two", "--", "--x", "1"],
        ]  # fmt: skip
