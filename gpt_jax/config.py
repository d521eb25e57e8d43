"""From an experiment file to frozen dataclasses, and to JSON and back.

Each module owns a dataclass with its defaults. `default()` makes one locked ConfigDict of them, an
experiment's `get_config(arg)` changes it, the command line overrides it, and `build` turns it back
into dataclasses, which validate themselves. Code below this door never sees a ConfigDict.

Source: the config files of big_vision (`file.py:arg=value`), with defaults that live once.
"""

import dataclasses
import difflib
import json
import typing

import ml_collections

from gpt_jax.data import DataConfig
from gpt_jax.losses import LossConfig
from gpt_jax.model.config import ModelConfig
from gpt_jax.optim import OptimConfig
from gpt_jax.runs import run_folder
from gpt_jax.runs.loggers import LogConfig
from gpt_jax.sample import SampleConfig
from gpt_jax.sharding import MeshConfig
from gpt_jax.tokenizers import AudioConfig, ImageConfig, TokenizerConfig
from gpt_jax.train import TrainConfig
from gpt_jax.training.checkpoint import CheckpointConfig


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = ModelConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  image: ImageConfig = ImageConfig()
  audio: AudioConfig = AudioConfig()
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  loss: LossConfig = LossConfig()
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  sample: SampleConfig = SampleConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  log: LogConfig = LogConfig()


def default():
  """All defaults as one locked ConfigDict: a wrong key raises with the nearest right one."""
  return section(Config()).lock()


def build(cls, section, where=''):
  """A ConfigDict or dict -> the dataclass `cls`, checked; absent keys take their defaults.

  Raises ValueError naming the dotted key for an unknown key, a value of the wrong type, or an
  impossible value.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  values = {}
  for key in section:
    name = f'{where}.{key}' if where else key
    if key not in fields:
      raise ValueError(f'{name} is not a config key\nfix: {suggestion(key, fields)}')
    values[key] = _convert(hints[key], section[key], name)
  return cls(**values)


def suggestion(word, choices):
  """The fix for an unknown name: the nearest of the choices, or all of them."""
  near = difflib.get_close_matches(word, choices, 1)
  return f'did you mean {near[0]}?' if near else f'use one of {", ".join(choices)}'


def _convert(hint, value, name):
  """One value of a section as its annotated type."""
  if dataclasses.is_dataclass(hint):
    return build(hint, _mapping(value, name), name)
  if typing.get_origin(hint) is dict:
    inner = typing.get_args(hint)[1]
    return {k: _convert(inner, v, f'{name}.{k}') for k, v in _mapping(value, name).items()}
  if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
    inner = typing.get_args(hint)[0]
    return tuple(_convert(inner, v, f'{name}[{i}]') for i, v in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  wanted = typing.get_origin(hint) or hint
  if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
    raise ValueError(
      f'{name}={value!r} is of type {type(value).__name__}\nfix: give a value of type {wanted.__name__}'
    )
  return value


def _mapping(value, name):
  if not isinstance(value, dict | ml_collections.ConfigDict):
    raise ValueError(f'{name}={value!r} is not a section\nfix: set one of the keys below it')
  return dict(value.items())


def to_dict(config):
  """A dataclass -> nested dict (tuples stay tuples)."""
  return dataclasses.asdict(config)


def from_json(text):
  """The text of a config.json -> an equal Config: annotations tell which lists are tuples."""
  return build(Config, json.loads(text))


def arguments(argument, **defaults):
  """Parse 'size=small,runlocal': `arguments(arg, size='small', runlocal=False)` -> ConfigDict.

  A bare name means True. Values take the type of their default. Raises ValueError for an unknown
  name.
  """
  values = ml_collections.ConfigDict(defaults)
  for item in filter(None, argument.split(',')):
    name, given, text = item.partition('=')
    if name not in defaults:
      hint = suggestion(name, defaults) if defaults else 'leave it out: this file takes none'
      raise ValueError(f'config argument {name!r} is not known\nfix: {hint}')
    kind = type(defaults[name])
    try:
      values[name] = BOOLEANS[text.lower() if given else 'true'] if kind is bool else kind(text)
      if kind is not bool and not given:
        raise ValueError('only True needs no value')
    except (KeyError, ValueError) as e:
      raise ValueError(
        f'config argument {item!r} is not of type {kind.__name__}\nfix: write {name}={defaults[name]}'
      ) from e
  return values


def section(dataclass):
  """One dataclass -> the section of a config that stands for it."""
  return ml_collections.ConfigDict(to_dict(dataclass))


def of_run(workdir):
  """The Config of a run folder, from its config.json."""
  return build(Config, run_folder.read_config(workdir))


BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}
