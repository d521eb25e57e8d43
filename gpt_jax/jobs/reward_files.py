"""Rewards by a function in a user's file: grpo.reward='my_rewards.py:score'.

It is called as score(question, completion, answer) with three texts, and returns a number. The run folder
keeps the file as reward.py: a resumed run uses this copy.
"""

import hashlib
import logging
import math
import pathlib
import re

from gpt_jax.runs import digests
from gpt_jax.runs.user_code import describe_error, load_module

log = logging.getLogger(__name__)
NAME = re.compile(r'(?P<path>.+\.py):(?P<function>\w+)')
COPY = 'reward.py'


class RewardFile:
  """The function of a reward file; call it like a row of REWARDS."""

  def __init__(self, name, workdir):
    """Load FILE.py:FUNCTION, from the copy in the run folder if there is one; ValueError if it cannot be."""
    self.name, self.path = name, pathlib.Path(NAME.fullmatch(name)['path']).expanduser()
    self.content = read_copy(workdir) if (workdir / COPY).exists() else self.read()
    if self.path.is_file() and self.read() != self.content:
      log.warning(
        '%s has changed since this run began, which goes on with its copy %s', self.path, workdir / COPY
      )
    function = NAME.fullmatch(name)['function']
    try:
      self.function = getattr(load_module(self.path, self.content), function)
    except Exception as error:
      cause = describe_error(error, self.path)
      raise ValueError(f'grpo.reward={name}: {cause}\nfix: correct {self.path}') from error

  def read(self):
    """Return the content of the user's file."""
    try:
      return self.path.read_bytes()
    except OSError as error:
      raise ValueError(
        f'grpo.reward={self.name}: {self.path} cannot be read: {error.strerror}\nfix: correct the path'
      ) from None

  @property
  def digest(self):
    """Return a hash of the file."""
    return hashlib.sha256(self.content).hexdigest()[:16]

  def write_copy(self, workdir):
    """Write the file into the run folder, unless it is there."""
    if not (workdir / COPY).exists():
      digests.write_file(workdir / COPY, lambda file: file.write(self.content))

  def __call__(self, cfg, question, completion, answer):
    """Return the reward of a completion; ValueError if the function fails or returns no finite number."""
    call = f'grpo.reward={self.name} of {question[-100:]!r}, {completion[:100]!r}, {answer[:100]!r}'
    try:
      reward = self.function(question, completion, answer)
    except Exception as error:
      cause = describe_error(error, self.path)
      raise ValueError(f'{call}: {cause}\nfix: correct {self.path}') from error
    try:
      value = float(reward)
    except (TypeError, ValueError):
      value = math.nan
    if not math.isfinite(value):
      raise ValueError(f'{call} is {reward!r}\nfix: return a finite number')
    return value


def read_copy(workdir):
  """Return the content of a run folder's copy; ValueError where it is not as it was written."""
  try:
    digests.verify_file(workdir / COPY)
  except (OSError, digests.Corrupt) as error:
    raise ValueError(
      f'{workdir / COPY} is not as the run wrote it: {str(error).splitlines()[0]}\n'
      f'fix: copy it and {COPY}.json back, or start again in another --workdir'
    ) from None
  return (workdir / COPY).read_bytes()
