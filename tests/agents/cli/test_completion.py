"""Tab completion in bash and zsh."""

import shlex
import shutil
import subprocess

import pytest

from agents.cli.commands import COMMANDS
from agents.cli.completion import completion_script
from tests.helpers.commands import run


@pytest.fixture(scope="module")
def script():
    return completion_script("bash", COMMANDS)


ASK = """
COMP_LINE={line}
read -r -a COMP_WORDS <<< "$COMP_LINE"
[[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_text_gym
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("text-gym co", "compare completion"),
        ("text-gym train s", "ss seqgan"),
        ("text-gym train mle --hi", "--hidden"),
        ("text-gym train mle --no-e", "--no-early-stopping"),
        ("text-gym train mle --task g", "grammar"),
        ("text-gym train ss --see", "--seed"),
        ("text-gym train seqgan(rounds=3) --discriminator.dr", "--discriminator.dropout"),
        ("text-gym train 'seqgan(rounds=3)' --discriminator.dr", "--discriminator.dropout"),
        ("text-gym compare mle se", "seqgan"),
        ("text-gym compare mle seqgan --seqgan.ro", "--seqgan.rollout-batch-size --seqgan.rollout-ema-rate "
                                                    "--seqgan.rollouts --seqgan.rounds"),
        ("text-gym compare mle a=ppo --a.clip", "--a.clip-range"),
        ("text-gym compare mle --ppo.clip", ""),
        ("text-gym compare mle --no", "--no-controls"),
        ("text-gym agents nl", "nlpo"),
        ("text-gym evaluate runs/mle --te", "--temperature"),
        ("text-gym sample --split t", "test train"),
        ("text-gym evaluate runs/mle --also ble", "bleu"),
        ("text-gym report ", ""),
        ("text-gym pl", "play"),
        ("text-gym watch runs/mle --", "--no-open --open --port"),
        ("text-gym play runs/mle --reward ble", "bleu"),
    ],
)  # fmt: skip
def test_completion(script, line, completed):
    code = script + ASK.format(line=shlex.quote(line))
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(completed.split()), "")


def test_completion_is_for_shells_that_there_are(capsys):
    code, out, _ = run(capsys, "completion", "zsh")
    assert code == 0
    assert out.startswith("autoload -U +X bashcompinit")
    code, out, err = run(capsys, "completion", "fish")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no completion script for 'fish'" in err
