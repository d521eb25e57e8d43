"""Completion for shells: `gpt-jax --completion=bash` prints a script that knows verbs, flags and config keys.

bash: eval "$(gpt-jax --completion=bash)" in ~/.bashrc; zsh: the same with zsh, in ~/.zshrc.
"""

import contextlib
import os

from absl import flags

from gpt_jax.cli import config_help, verbs
from gpt_jax.runs.user_code import SHIPPED

ZSH = 'autoload -Uz compinit bashcompinit && compinit && bashcompinit\n'
SCRIPT = r"""_gpt_jax() {
  local cur="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="${COMP_WORDS[1]}"
  local name="" prefix="" words=""
  # bash cuts --name=value at '=', zsh does not.
  if [[ "$cur" == "=" ]]; then name="$before"; cur=""
  elif [[ "$before" == "=" ]]; then name="${COMP_WORDS[COMP_CWORD-2]}"
  elif [[ "$cur" == --*=* ]]; then name="${cur%%=*}"; prefix="$name="; cur="${cur#*=}"
  fi
  COMPREPLY=()
  if [[ -n "$name" ]]; then
    case "$verb$name" in
VALUES
      *--config) words="EXPERIMENTS" ;;
    esac
    COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$cur") $(compgen -P "$prefix" -f -- "$cur"))
    return
  fi
  if [[ $COMP_CWORD -eq 1 ]]; then COMPREPLY=($(compgen -W "VERBS" -- "$cur")); return; fi
  case "$verb" in
FLAGS
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -F _gpt_jax gpt-jax
"""


def script(shell, with_overrides):
  """Return the script for a row of SHELLS; with_overrides: the verbs that take --config.KEY=VALUE."""
  if shell not in SHELLS:
    raise ValueError(f'--completion={shell} is not a known shell\nfix: use one of {", ".join(SHELLS)}')
  from gpt_jax import config

  keys = ' '.join(f'--config.{key}=' for key, _, _ in config_help.keys(config.Config))
  names, values = [], []
  for verb, row in verbs.VERBS.items():
    defined = flags_of(row)
    words = [f'--{flag.name}' if flag.boolean else f'--{flag.name}=' for flag in defined] + ['--help']
    words += ['--config='] if verb in ('train', 'plan') else []
    names.append(f'    {verb}) words="{" ".join(words)}{" $keys" if verb in with_overrides else ""}" ;;')
    for flag in defined:
      if isinstance(flag, flags.EnumFlag):
        values.append(f'      {verb}--{flag.name}) words="{" ".join(flag.parser.enum_values)}" ;;')
  experiments = sorted(
    {path.stem for root in SHIPPED for path in (root / 'experiments').glob('**/[a-z]*.py')}
  )
  text = SCRIPT.replace('VALUES', '\n'.join(values)).replace('EXPERIMENTS', ' '.join(experiments))
  text = text.replace('VERBS', ' '.join(verbs.VERBS)).replace('FLAGS', '\n'.join(names))
  return SHELLS[shell] + text.replace('  local name=', f'  local keys="{keys}"\n  local name=', 1)


def flags_of(verb):
  """Return the flags that a verb defines, which are then forgotten."""
  before, environment = set(flags.FLAGS), dict(os.environ)
  with contextlib.suppress(ImportError):  # of an extra that is not installed
    verb.define_flags()
  os.environ.update(environment)  # `plan` sets variables of its process
  names = sorted(set(flags.FLAGS) - before)
  defined = [flags.FLAGS[name] for name in names]
  for name in names:
    delattr(flags.FLAGS, name)
  return defined


SHELLS = {'bash': '', 'zsh': ZSH}  # {name: what comes before the script}
