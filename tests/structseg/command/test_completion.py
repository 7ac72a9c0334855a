"""Shell completion, tested in bash."""

import shutil
import subprocess

import pytest

from structseg.command import completion
from tests.structseg.command.test_light_commands import light


def script(shell):
    code, out, err = light("completion", shell)
    assert (code, err) == (0, "")
    return out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_subcommands_options_and_configurations(tmp_path):
    (tmp_path / "completion.bash").write_text(script("bash"))
    asked = """
source completion.bash
function=$(complete -p structseg | sed 's/.*-F \\([^ ]*\\).*/\\1/')
while read -r line; do
    COMP_WORDS=($line); [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    $function structseg "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    echo "${COMPREPLY[*]}"
done
"""
    lines = ["structseg fi", "structseg fit --trainer.max", "structseg predict --ou", "structseg fit fasseg_v2_rea",
             "structseg fit --config consensus/synth", "structseg completion z", "structseg pipeline --unt",
             "structseg results sup", "structseg results --details fasseg_v2_read", "structseg submit --gpus",
             "structseg pipeline --arm plac", "structseg fit --trainer.precision bf", "structseg fit --resume a"]  # fmt: skip
    done = subprocess.run(
        ["bash", "--norc", "-c", asked],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    fit, epochs, out, name, config, shell, until, _, row, gpus, arm, precision, resume = done.stdout.splitlines()
    assert (fit, epochs, out, shell) == ("fit", "--trainer.max_epochs", "--out", "zsh")
    assert (until, gpus) == ("--until", "--gpus-per-node")
    assert "placebo" in arm.split()
    assert (precision, resume) == ("bf16-mixed", "auto")
    assert "fasseg_v2_readme" in row.split()
    assert "fasseg_v2_readme" in name.split()
    assert "consensus/synthetic_occlusion" in config.split()


def test_zsh_has_its_script():
    assert script("zsh").startswith("#compdef structseg")


@pytest.mark.parametrize("args", [[], ["fish"], ["bash", "zsh"]])
def test_other_shells_are_refused(args, capsys):
    with pytest.raises(SystemExit, match="2"):
        completion.main(args)
    assert capsys.readouterr().err.startswith("structseg: error: completion: ")
