"""Checks that the tokenizer configs share."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable


def check_fields(section: str, cfg, rules: Iterable[tuple[str, bool, str]]) -> None:
  """Raise ValueError for the first field whose rule (name, is valid, fix) is broken."""
  for name, is_valid, fix in rules:
    if not is_valid:
      raise ValueError(f'{section}.{name}={getattr(cfg, name)} is not possible\nfix: {fix}')


def check_effective(section: str, cfg, fields_read: Iterable[str]) -> None:
  """Raise ValueError for a field that is not at its default, although its kind does not read it."""
  for name in changed_fields(cfg):
    if name not in fields_read:
      raise ValueError(
        f'{section}.{name}={getattr(cfg, name)} has no effect with {section}.kind={cfg.kind!r}\n'
        f'fix: leave {section}.{name}={getattr(type(cfg), name)}, or choose another {section}.kind'
      )


def changed_fields(cfg) -> list[str]:
  """Return the names of the fields, `kind` aside, that are not at their defaults."""
  names = [field.name for field in dataclasses.fields(cfg) if field.name != 'kind']
  return [name for name in names if getattr(cfg, name) != getattr(type(cfg), name)]


def load_own(section: str, cfg, load: Callable):
  """Load the tokenizer in `cfg.path`, a folder that `save` wrote or the run that trained it.

  Raises ValueError if its kind is not `cfg.kind`.
  """
  path = pathlib.Path(cfg.path).expanduser()
  tokenizer = load(path / 'codec' if (path / 'codec').is_dir() else path)
  if tokenizer.kind != cfg.kind:
    raise ValueError(
      f'{section}.path={cfg.path} holds a {tokenizer.kind} tokenizer, not {cfg.kind}\n'
      f'fix: set {section}.kind={tokenizer.kind}, or give another path'
    )
  return tokenizer


def not_trained(section: str, cfg) -> ValueError:
  """Return the error for a learned tokenizer without a path."""
  return ValueError(
    f"{section}.path='' with {section}.kind={cfg.kind}, which has to be trained first\n"
    f'fix: train one with train.job={section}_tokenizer, and set {section}.path to its run folder'
  )
