"""Parameter groups by path: learning-rate multipliers and weight decay."""

import math
import re

from gpt_jax.optimizers.mup import is_matrix


def parse_multiplier(entry):
  """Parse 'regex=factor' into (compiled regex, factor)."""
  pattern, _, factor = entry.rpartition('=')
  try:
    if not 0 <= float(factor) < math.inf:
      raise ValueError(f'{factor} is not a factor >= 0')
    return re.compile(pattern), float(factor)
  except (re.error, ValueError) as e:
    raise ValueError(
      f'optim.lr_multipliers entry {entry!r} is not regex=factor ({e})\n'
      "fix: write e.g. ('embed_VD=0.1', '.*=1')"
    ) from e


def match_multipliers(entries, paths):
  """Return {path: factor} by the first entry that matches the whole path.

  Raises ValueError when an entry matches nothing or a path is matched by none: a typo must not
  train everything.
  """
  if not entries:
    return dict.fromkeys(paths, 1.0)
  parsed, matches = [parse_multiplier(entry) for entry in entries], {}
  for path in paths:
    for i, (pattern, factor) in enumerate(parsed):
      if pattern.fullmatch(path):
        matches[path] = (i, factor)
        break
  if unmatched := [path for path in paths if path not in matches]:
    raise ValueError(
      f'optim.lr_multipliers matches nothing for {", ".join(unmatched)}\nfix: add the entry ".*=1" at the end'
    )
  used = {i for i, _ in matches.values()}
  if unused := [entry for i, entry in enumerate(entries) if i not in used]:
    raise ValueError(
      f'optim.lr_multipliers entry {unused[0]!r} is the first match of no parameter\n'
      f'fix: remove it, or use the paths {", ".join(paths)}'
    )
  return {path: factor for path, (_, factor) in matches.items()}


def match_decay(pattern, axes):
  """Return the set of paths with weight decay: those that match, or all matrices for ''.

  axes: {path: letters}. Raises ValueError for a pattern that matches nothing.
  """
  decays = lambda path: re.fullmatch(pattern, path) if pattern else is_matrix(axes[path])
  paths = {path for path in axes if decays(path)}
  if pattern and not paths:
    raise ValueError(
      f'optim.decay={pattern!r} matches no parameter\nfix: use paths such as {next(iter(axes))}'
    )
  return paths
