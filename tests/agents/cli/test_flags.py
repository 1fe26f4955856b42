"""Command lines and configuration files of train and compare."""

from pathlib import Path

import pytest

from agents.cli.flags import read_comparison, read_config, read_training
from agents.experiments.comparison import plan
from text_gym.errors import DataError, OptionError, TextGymError

MINE = "tests.helpers.own_agents:"


def words(line):
    return line.split()


@pytest.fixture
def config(write):
    def writer(text):
        return ["--config", str(write("settings.toml", text))]

    return writer


def test_train_by_default():
    asked, options = read_training(["mle"])
    assert (asked.agent, asked.task, asked.seed, asked.out, asked.start) == ("mle", None, 0, None, None)
    assert (asked.preset, asked.reward, asked.steps, asked.device, asked.threads) == (None, None, None, "auto", 1)
    assert asked.metrics.samples == 4_000
    assert options == {}


def test_flags_of_a_run_and_of_an_agent():
    line = "mle --seed 3 --hidden 8 --task oracle --schedule 3 0.5 4 0.25 --no-early-stopping --samples 7 --out a/b"
    asked, options = read_training(words(line))
    assert (asked.seed, asked.task, asked.metrics.samples, asked.out) == (3, "oracle", 7, Path("a/b"))
    assert options == {"hidden": 8, "schedule": ((3, 0.5), (4, 0.25)), "early_stopping": False}
    assert read_training(words("--seed 3 mle --hidden 8"))[1] == {"hidden": 8}
    assert read_training(["mle", "--hidden=8", "--also", "length", "bleu"])[0].metrics.also == ("length", "bleu")
    asked, options = read_training(words("mle --also length --hidden 8 --also bleu chrf --seed 3 --also=ter"))
    assert (asked.metrics.also, asked.seed, options) == (("length", "bleu", "chrf", "ter"), 3, {"hidden": 8})
    assert read_comparison(words("mle --also length --also bleu")).metrics.also == ("length", "bleu")
    assert read_training(["seqgan(rounds=3)", "--rollouts", "2"])[1] == {"rounds": 3, "rollouts": 2}
    assert read_training(["seqgan(rounds=3)", "--rounds", "4"])[1] == {"rounds": 4}
    assert read_training(["reinforce(reward='length', updates=2)"])[1] == {"updates": 2, "reward": "length"}


def test_hyper_parameters_in_groups_are_flags_with_a_dot():
    options = read_training(words("seqgan --discriminator.dropout 0.1 --kl.weight 0.2 --discriminator.filters 1 8"))[1]
    assert options == {"discriminator": {"dropout": 0.1, "filters": ((1, 8),)}, "kl": {"weight": 0.2}}
    given = ["seqgan(discriminator={'kind': 'recurrent'})", "--discriminator.hidden", "8"]
    assert read_training(given)[1] == {"discriminator": {"kind": "recurrent", "hidden": 8}}
    assert (
        read_training(["seqgan", "--preset", "demo", "--discriminator.reward", "log_ratio"])[1] == {}
    )  # equals the preset


def test_presets_are_defaults_of_the_flags():
    asked, options = read_training(words("seqgan --preset fast --batch-size 3"))
    assert (asked.preset, options) == ("fast", {"batch_size": 3})
    asked, options = read_training(["mle(preset='strong', hidden=3)"])
    assert (asked.agent, asked.preset, options) == ("mle", "strong", {"hidden": 3})
    for line in ("mle --preset strog", "mle(preset='strog')", "uniform --preset fast", MINE + "Plain --preset fast"):
        with pytest.raises(OptionError, match="has no preset"):
            read_training(words(line) if "(" not in line else [line])


def test_agents_of_ones_own_have_their_flags():
    assert read_training(words(MINE + "Plain --seed 2"))[1] == {}
    asked, options = read_training(words(MINE + "Clashing --steps 2 --hyper.steps 9 --samples 20"))
    assert (asked.steps, asked.metrics.samples, options) == (2, 20, {"steps": 9})
    asked, options = read_training([MINE + "OnlySamples(times=3)", "--seed", "4"])
    assert (asked.agent, asked.seed, options) == (MINE + "OnlySamples", 4, {"times": 3})
    with pytest.raises(OptionError, match="has a reserved name"):
        read_training([MINE + "Seeded"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mle --hiden 4", "unknown flag --hiden. Did you mean --hidden? --help lists all flags"),
        ("uniform --hidden 3", "unknown flag --hidden. --help lists all flags"),
        ("mle seqgan", "unexpected argument 'seqgan'; name agents first"),
        ("reinforce --lr 0.1", "Did you mean --learning-rate?"),
        ("reinforce --bs 3", "Did you mean --batch-size?"),
        ("ppo --num_epochs=3", "unknown flag --num_epochs. Did you mean --n-epochs?"),
        ("mle --epochs 3", "Did you mean --schedule or --steps?"),
        ("seqgan --discriminator.lr 0.1", "Did you mean --discriminator.learning-rate?"),
        ("mle --output_dir runs/a", "Did you mean --out?"),
    ],
)
def test_flags_that_there_are_not_find_what_is_meant(line, words):
    with pytest.raises(OptionError) as refused:
        read_training(line.split())
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "", "--hidden 4", "--hidden 4 mle", "mle --seed x", "mle --seed -1", "mle --steps -1", "mle --threads 0",
        "mle --config", "--config",
    ],
)  # fmt: skip
def test_flags_that_there_are_not_end_it(line, capsys):
    with pytest.raises(SystemExit) as ended:
        read_training(words(line))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "pytest" not in err  # the program name is text-gym


def test_help_shows_the_values_of_the_preset(capsys):
    for line, shown in [
        (
            "seqgan --preset paper --help",
            ["AGENT", "--rounds", "--discriminator.dropout", "--temperatures", "--task", "text-gym train"],
        ),
        ("--help", ["--task", "STR", "metrics options"]),
    ]:
        with pytest.raises(SystemExit) as ended:
            read_training(words(line))
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert all(word in out for word in shown), shown
    with pytest.raises(SystemExit):
        read_comparison(words("mle x=seqgan --help"))
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--mle.hidden", "--x.rounds", "--seeds"))


TOML = """
agent = "mle"
task = "oracle"
seed = 5
samples = 33
sweep-samples = 44
temperatures = [1]
out = "from/file"
hidden = 9
schedule = [[2, 0.5]]
"""


def test_a_file_says_the_same_and_flags_go_before_it(config):
    asked, options = read_training(config(TOML))
    assert (asked.agent, asked.task, asked.seed, asked.out) == ("mle", "oracle", 5, Path("from/file"))
    assert (asked.metrics.samples, asked.metrics.sweep_samples, asked.metrics.temperatures) == (33, 44, (1.0,))
    assert options["hidden"] == 9
    assert [list(part) for part in options["schedule"]] == [[2, 0.5]]
    asked, options = read_training([*config(TOML), *words("--hidden 4 --seed 6")])
    assert (asked.agent, asked.seed, options["hidden"]) == ("mle", 6, 4)
    assert read_training(["ss", *config(TOML)])[0].agent == "ss"
    assert read_training([*config(TOML), "ss"])[0].agent == "ss"
    path = config(TOML)[1]
    assert read_training([f"--config={path}"])[1]["hidden"] == 9
    with pytest.raises(OptionError, match="'ss' comes after the flag of a hyperparameter"):
        read_training([*config(TOML), *words("--hidden 4 ss")])


GROUPS = """
agent = "seqgan(discriminator={'kind': 'recurrent'})"
[discriminator]
batch-size = 8
dropout = 0.1
"""


def test_groups_of_hyper_parameters_are_tables_of_a_file(config):
    options = read_training([*config(GROUPS), *words("--discriminator.dropout 0.2 --kl.weight 0.3")])[1]
    assert options["discriminator"] == {"kind": "recurrent", "batch_size": 8, "dropout": 0.2}
    assert options["kl"] == {"weight": 0.3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "agent = 'mle'\ntasks = 'grammar'",
            "unknown setting 'tasks' for mle in the configuration file. Did you mean 'task'",
        ),
        ("agent = 'mle'\nhiden = 3", "Did you mean 'hidden'"),
        ("agent = 5", "agent = 5; it must be a string"),
        ("agent = 'mle'\nsteps = 'many'", "steps = 'many'; it must be a whole number"),
        ("agent = 'mle'\nsteps = true", "steps = True; it must be a whole number"),
        ("agent = 'mle'\nseed = 1.5", "seed = 1.5; it must be a whole number"),
        ("agent = 'mle'\ntemperatures = 0.5", "temperatures = 0.5; it must be a list of numbers"),
        ("agent = 'mle'\nalso = 'length'", "also = 'length'; it must be a list of strings"),
        ("agent = 'mle'\nalso = [1]", r"also = \[1\]; it must be a list"),
        ("agent = 'mle'\nout = 5", "out = 5; it must be a string"),
        ("agent = 'mle'\ntask = ['a']", r"task = \['a'\]; it must be a string"),
        ("agent = 'mle'\nhidden = 'big'", "hidden must be a whole number"),
        ("agent = 'mle'\n[mle]\nhidden = 3", r"a table \[mle\], but mle has no such group of hyperparameters"),
        ("agent = 'mle'\n[hidden]\nsize = 3", r"a table \[hidden\]"),
        ("agent = 'seqgan'\n[discriminator]\ndroput = 3", "hyperparameter 'discriminator.droput'. Did you mean 'drop"),
        ("agent = 'seqgan'\n[discriminator]\ndropout = 3", "discriminator.dropout=3"),
        ("agent = 'seqgan'\ndiscriminator = 3", "a group of hyperparameters discriminator, and 3 is not a dict; give"),
        ("agent = mle", "cannot read"),
        ("agent = 'mle'\nsamples = 1", "samples must be"),
        ("agent = 'mle'\nmetrics = 3", "setting 'metrics'"),
        ("agent = 'mle'\nseed = -3", "seed must be"),
    ],
)
def test_a_file_that_is_wrong_is_told_in_a_line(config, text, said):
    with pytest.raises(TextGymError, match=said):
        read_training(config(text))


def test_files_that_are_none(tmp_path):
    for path in ("absent.toml", str(tmp_path)):
        with pytest.raises(DataError, match="cannot read"):
            read_config(["--config", path])
    (tmp_path / "latin.toml").write_bytes(b"task = '\xe9'")
    with pytest.raises(DataError, match="cannot read"):
        read_config([f"--config={tmp_path / 'latin.toml'}"])
    assert read_config(["mle", "--config"]) == {}


# Comparisons.


def test_compare_by_default():
    asked = read_comparison([])
    assert asked.agents == ("mle", "ss", "pg-bleu", "seqgan")
    assert (asked.seeds, asked.out, asked.controls, asked.options) == (3, Path("runs/compare"), True, {})


def test_hyper_parameters_are_flags_of_their_label():
    asked = read_comparison(
        words("mle x.y=mle seqgan --seeds 2 --mle.hidden 4 --x.y.hidden 5 --no-controls --points 3")
    )
    assert asked.agents == ("mle", "x.y=mle", "seqgan")
    assert asked.options == {"mle": {"hidden": 4}, "x.y": {"hidden": 5}}
    assert (asked.seeds, asked.controls, asked.metrics.points) == (2, False, 3)
    asked = read_comparison(["a-b=seqgan(rounds=4)", "--a-b.rollouts", "2", "--preset", "fast"])
    assert asked.options == {"a-b": {"rollouts": 2}}
    assert plan(asked)[1].recipe.settings("fast").rounds == 4
    asked = read_comparison(words("mle x.y=seqgan --x.y.discriminator.dropout 0.1 --x.y.kl.weight 0.1"))
    assert asked.options == {"x.y": {"discriminator": {"dropout": 0.1}, "kl": {"weight": 0.1}}}
    # Without agents on the command line, the default agents are used.
    asked = read_comparison(words("--seqgan.rounds 5 --seeds 1"))
    assert asked.agents == ("mle", "ss", "pg-bleu", "seqgan")
    assert (asked.options, asked.seeds) == ({"seqgan": {"rounds": 5}}, 1)


COMPARED = """
agents = ["mle", "q=seqgan"]
seeds = 2
sweep_samples = 44
controls = false
[mle]
hidden = 9
[q]
rounds = 3
[q.discriminator]
kind = "recurrent"
"""


def test_a_file_of_a_comparison(config):
    asked = read_comparison(config(COMPARED))
    assert (asked.agents, asked.seeds, asked.controls) == (("mle", "q=seqgan"), 2, False)
    recurrent = {"kind": "recurrent"}
    assert asked.options == {"mle": {"hidden": 9}, "q": {"rounds": 3, "discriminator": recurrent}}
    asked = read_comparison([*config(COMPARED), *words("--q.rounds 4 --q.rollouts 2 --seeds 5 --controls")])
    assert asked.agents == ("mle", "q=seqgan")
    assert asked.options["q"] == {"rounds": 4, "rollouts": 2, "discriminator": recurrent}
    assert asked.options["mle"] == {"hidden": 9}
    assert (asked.seeds, asked.controls) == (5, True)
    asked = read_comparison([*config(COMPARED), "--q.discriminator.dropout", "0.1"])
    assert asked.options["q"] == {"rounds": 3, "discriminator": {"kind": "recurrent", "dropout": 0.1}}
    assert plan(asked)[1].recipe.settings(None).discriminator.kind == "recurrent"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agents = 'mle'", "agents = 'mle'; it must be a list of strings"),
        ("agents = [5]", "agents = "),
        ("seeds = '3'", "seeds = '3'; it must be a whole number"),
        ("controls = 'no'", "controls = 'no'; it must be a boolean"),
        ("jobs = 0.5", "jobs = 0.5"),
        ("out = 7", "out = 7"),
        ("agents = ['mle']\nmle = 5", "unknown setting 'mle' in the configuration file"),
        ("agents = ['mle']\nsedes = 5", "Did you mean 'seeds'"),
        ("options = 5", "unknown setting 'options'"),
        ("agents = ['seqgan']\n[seqgan.discriminator]\nkid = 5", "no hyperparameter 'discriminator.kid'"),
        ("agents = ['mle']\n[mle]\nhiden = 5", "no hyperparameter 'hiden'"),
        ("agents = ['mle']\n[task]\nname = 'x'", "task = {'name': 'x'}; it must be a string"),
        ("agents = []", "name the agents"),
    ],
)
def test_a_file_of_a_comparison_that_is_wrong_is_told_in_a_line(config, text, said):
    with pytest.raises(OptionError, match=said):
        read_comparison(config(text))


def test_hyper_parameters_before_agents_are_refused(config):
    with pytest.raises(OptionError, match="comes after the flag of a hyperparameter; name agents first"):
        read_comparison(words("--mle.hidden 4 mle"))
    with pytest.raises(OptionError, match="after the flag of a hyperparameter"):
        read_training([*config("agent = 'mle'"), *words("--hidden 4 ss")])
    for line in ("mle --seeds 0", "mle --jobs 0", "mle --mle.hidden 0"):
        with pytest.raises(SystemExit):
            read_comparison(words(line))
    for line, said in [
        ("mle --mle.hidden 4 seqgan", "unexpected argument 'seqgan'; name agents first"),
        ("mle --mle.hiden 4", "Did you mean --mle.hidden"),
        ("mle x=reinforce --x.lr 4", "Did you mean --x.learning-rate"),
        ("mle --num-seeds 4", "Did you mean --seeds"),
    ]:
        with pytest.raises(OptionError, match=said):
            read_comparison(words(line))
