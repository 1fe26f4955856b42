"""Completion script for bash and zsh, with all commands, agents, flags and hyperparameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping

from agents.cli.config import names_of
from agents.cli.flags import Comparing, Training
from agents.common.settings import flattened
from agents.experiments.recipes import Recipe, find_agent
from agents.experiments.registry import registered_agents
from text_gym.errors import DependencyError, OptionError
from text_gym.rewards import registered_rewards
from text_gym.sequences import SPLITS
from text_gym.tasks import registered_tasks
from text_gym.validation import suggest

ZSH = "autoload -U +X bashcompinit && bashcompinit\n"  # makes zsh accept completion scripts for bash
SCRIPT = """\
_text_gym_flags() {{
  case $1 in
{flags}
  esac
}}

_text_gym_hyper_parameters() {{
  case $1 in
{hyper}
  esac
}}

_text_gym() {{
  local command=${{COMP_WORDS[1]}} current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
  local list= word label agent prefix name
  if [[ $COMP_CWORD == 1 ]]; then
    list="{commands}"
  else
    case $previous in
{values}
    *)
      if [[ $current == -* ]]; then
        list=$(_text_gym_flags "$command")
        [[ $command == train || $command == compare ]] && for word in $COMP_LINE; do
          word=${{word%%\\(*}} word=${{word#[\\'\\"]}} prefix=
          agent=${{word#*=}} label=${{word%%=*}}
          [[ $command == compare ]] && prefix=$label.
          for name in $(_text_gym_hyper_parameters "$agent"); do list="$list --$prefix$name"; done
        done
      elif [[ $command == train || $command == compare || $command == agents ]]; then
        list="{agents}"
      fi;;
    esac
  fi
  COMPREPLY=($(compgen -W "$list" -- "$current"))
}}

complete -o default -F _text_gym text-gym
"""


def completion_script(shell: str, commands: Mapping[str, Callable[..., object]]) -> str:
    """Return the completion script.

    Args:
        shell: "bash" or "zsh".
        commands: Functions of the commands, by name.
    """
    if shell not in ("bash", "zsh"):
        raise OptionError(f"no completion script for {shell!r}." + suggest(shell, ("bash", "zsh")))
    flags = {name: _flags_of(function) for name, function in commands.items()}
    flags |= {"train": _flags(names_of(Training) - {"agent"} | {"config"})}
    flags |= {"compare": _flags(names_of(Comparing) - {"agents"} | {"config"}) | {"--no-controls"}}
    recipes = {name: recipe for name in registered_agents() if (recipe := _recipe(name)) is not None}
    values = {
        "--task": registered_tasks(),
        "--reward|--also": registered_rewards(),
        "--device": ("auto", "cpu", "cuda"),
        "--split": SPLITS,
        "--preset": {preset for recipe in recipes.values() for preset in recipe.agent_class.presets},
    }
    script = SCRIPT.format(
        flags=_cases(flags, "echo"),
        hyper=_cases({name: _hyper_parameters(recipe) for name, recipe in recipes.items()}, "echo"),
        values=_cases(values, "list="),
        commands=" ".join(commands),
        agents=" ".join(registered_agents()),
    )
    return (ZSH if shell == "zsh" else "") + script


def _recipe(name: str) -> Recipe | None:
    """Find the recipe of an agent; None if a library that it needs is not installed."""
    try:
        return find_agent(name)
    except DependencyError:
        return None


def _hyper_parameters(recipe: Recipe) -> set[str]:
    """Return the flags of an agent's hyperparameters, without leading dashes."""
    settings = recipe.settings(None)
    found = set()
    for name, value in flattened(settings) if settings is not None else ():
        group, dot, last = name.rpartition(".")
        found |= {name, f"{group}{dot}no_{last}"} if isinstance(value, bool) else {name}
    return {name.replace("_", "-") for name in found}


def _flags_of(function: Callable[..., object]) -> set[str]:
    """Return the flags of a command from the parameters of its function."""
    parameters = inspect.signature(function).parameters.values()
    flags = [p for p in parameters if "Positional" not in str(p.annotation) and p.default is not p.empty]
    return _flags(p.name for p in flags) | _flags(f"no_{p.name}" for p in flags if p.default is True)


def _flags(names: Iterable[str]) -> set[str]:
    return {"--" + name.replace("_", "-") for name in names}


def _cases(lists: Mapping[str, Iterable[str]], action: str) -> str:
    """Format the cases of a case statement: `action` is "echo" or "list="."""
    space = " " if action == "echo" else ""
    return "\n".join(f'    {pattern}) {action}{space}"{" ".join(sorted(words))}";;' for pattern, words in lists.items())
