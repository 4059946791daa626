"""`outlier-moe completion`: what a shell needs to complete commands, options and models."""

from __future__ import annotations

import argparse
import sys

from outlier_moe.terminal.arguments import options, subcommands

SHELLS = ("bash", "zsh", "fish")
# In the shell itself: starting Python for each press of a key would be felt.
_MODELS = r"""sed -n '/^models:/,/^[a-z]*:$/s/^  \([A-Za-z0-9._-]*\):.*/\1/p' config/models.yaml 2>/dev/null"""
_BASH = """\
_outlier_moe() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}} $before" in
{choices}
      *) case "${{COMP_WORDS[1]}}" in
{options}
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}}
complete -F _outlier_moe outlier-moe
"""


def add_parser(commands: argparse._SubParsersAction, parser: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        parser: The whole command line, once all other commands are there.
    """
    completion = commands.add_parser(
        "completion",
        help="what a shell needs to complete commands, options and models",
        description='bash, zsh: eval "$(outlier-moe completion bash)" (or zsh) in ~/.bashrc (or ~/.zshrc). '
        "fish: outlier-moe completion fish > ~/.config/fish/completions/outlier-moe.fish",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=lambda arguments: _run(arguments, parser))


def _run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if arguments.shell == "fish":
        sys.stdout.write(_fish(parser))
        return
    if arguments.shell == "zsh":
        sys.stdout.write("autoload -Uz bashcompinit && bashcompinit\n")
    sys.stdout.write(_bash(parser))


def _bash(parser: argparse.ArgumentParser) -> str:
    chosen, by_command = [], []
    for name, command in subcommands(parser).items():
        for action in command._actions:
            if action.choices and action.option_strings:
                words = " ".join(map(str, action.choices))
                chosen.append(f'      "{name} {action.option_strings[-1]}") words="{words}" ;;')
        words = " ".join([*options(command), *_positional(command)])
        by_command.append(f'      {name}) words="{words}" ;;')
    names = " ".join(subcommands(parser))
    return _BASH.format(commands=names, choices="\n".join(chosen), options="\n".join(by_command))


def _positional(command: argparse.ArgumentParser) -> list[str]:
    """Completions of positional arguments: choices, or the models of the registry."""
    words = []
    for action in command._actions:
        if not action.option_strings and action.choices:
            words += map(str, action.choices)
        elif action.metavar == "MODEL":
            words.append(f"$({_MODELS})")
    return words


def _fish(parser: argparse.ArgumentParser) -> str:
    lines = []
    for name, command in subcommands(parser).items():
        lines.append(f"complete -c outlier-moe -n __fish_use_subcommand -a {name}")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for action in command._actions:
            words = f" -x -a '{' '.join(map(str, action.choices))}'" if action.choices else ""
            lines += [f"complete -c outlier-moe {seen} -l {option[2:]}{words}" for option in action.option_strings[-1:]]
            if not action.option_strings and words:
                lines.append(f"complete -c outlier-moe {seen}{words}")
            elif not action.option_strings and action.metavar == "MODEL":
                lines.append(f'complete -c outlier-moe {seen} -a "({_MODELS})"')
    return "\n".join(lines) + "\n"
