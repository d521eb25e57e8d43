"""The Config of an experiment: frozen dataclasses, each beside the code that it configures.

`default()` returns them as one locked ConfigDict, an experiment's `get_config(arg)` changes it, the command
line overrides it, and `build` converts it back into dataclasses, which validate themselves. No other code
sees a ConfigDict. Source: the config files of big_vision (`file.py:arg=value`).
"""

import dataclasses
import difflib
import typing

import ml_collections

from gpt_jax.data import DataConfig
from gpt_jax.jobs.distillation_losses import DistilConfig
from gpt_jax.jobs.preference_losses import PreferenceConfig
from gpt_jax.jobs.rewards import GrpoConfig
from gpt_jax.losses import LossConfig
from gpt_jax.model.adapters import AdapterConfig
from gpt_jax.model.config import ModelConfig
from gpt_jax.optim import OptimConfig
from gpt_jax.runs import plugins, reading, run_folder
from gpt_jax.runs.loggers import LogConfig
from gpt_jax.sample import SampleConfig
from gpt_jax.sharding import MeshConfig
from gpt_jax.tokenizers import AudioConfig, EncoderConfig, ImageConfig, TokenizerConfig
from gpt_jax.train import TrainConfig
from gpt_jax.training.checkpoint import CheckpointConfig
from gpt_jax.training.privacy.settings import PrivacyConfig


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = ModelConfig()
  adapter: AdapterConfig = AdapterConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  image: ImageConfig = ImageConfig()
  audio: AudioConfig = AudioConfig()
  encoder: EncoderConfig = EncoderConfig()
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  loss: LossConfig = LossConfig()
  preference: PreferenceConfig = PreferenceConfig()
  grpo: GrpoConfig = GrpoConfig()
  distil: DistilConfig = DistilConfig()
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  privacy: PrivacyConfig = PrivacyConfig()
  sample: SampleConfig = SampleConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  log: LogConfig = LogConfig()
  plugins: tuple[str, ...] = ()  # Python files that add rows to the tables: runs/plugins.py


def default():
  """Return all defaults as one locked ConfigDict: a wrong key raises with the nearest right one."""
  return section(Config()).lock()


def section(dataclass):
  """Return the ConfigDict of a dataclass."""
  return ml_collections.ConfigDict(to_dict(dataclass))


def of_run(workdir, key='workdir'):
  """Return the Config of a run folder, from its config.json; errors name `key`."""
  return build(Config, plugins.load(run_folder.read_config(workdir, key), workdir))


def start_from(config, run, adapter=0, length=0):
  """Make `config` train the model of a run folder: adapters of this rank alone, or (0) all of it.

  length: tokens of a row, at most the model's context (0).
  """
  base = of_run(run, 'train.init_from')
  config.model, config.tokenizer = section(base.model), section(base.tokenizer)
  config.adapter.rank = adapter
  config.train.update(init_from=run, length=min(length, base.model.context))
  if not adapter:
    config.model.param_dtype = 'float32'  # half precision loses small updates


def build(cls, section, where=''):
  """Convert a ConfigDict or dict to the dataclass `cls`; absent keys take their defaults.

  Raises ValueError naming the dotted key for an unknown key, a wrong type, or an impossible value.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  section = plugins.load(section) if cls is Config else section
  values = {}
  for key in section:
    name = f'{where}.{key}' if where else key
    if key not in fields:
      raise ValueError(f'{name} is not a config key\nfix: {suggestion(key, fields)}')
    values[key] = _convert(hints[key], section[key], name)
  built = cls(**values)
  getattr(built, 'check_effective', lambda: None)()
  return built


def _convert(hint, value, name):
  """Convert one value of a section to its annotated type."""
  kind = typing.get_origin(hint) or hint
  if dataclasses.is_dataclass(hint) or kind is dict:
    if not isinstance(value, dict | ml_collections.ConfigDict):
      raise ValueError(f'{name}={value!r} is not a section\nfix: set one of the keys below it')
    if kind is not dict:
      return build(hint, dict(value.items()), name)
    return {key: _convert(typing.get_args(hint)[1], item, f'{name}.{key}') for key, item in value.items()}
  if kind is tuple and isinstance(value, list | tuple):
    return tuple(_convert(typing.get_args(hint)[0], item, f'{name}[{i}]') for i, item in enumerate(value))
  if isinstance(value, int) and abs(value) >= 2**63:  # overflows a float, or an integer of numpy
    raise ValueError(f'{name}={value} has more than 64 bits\nfix: give a smaller number')
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ValueError(f'{name}={value!r} is of type {type(value).__name__}\nfix: use type {kind.__name__}')
  return value


def suggestion(word, choices):
  """Return the fix for an unknown name: the nearest of the choices, or all of them."""
  near = difflib.get_close_matches(RENAMED.get(word, word), choices, 1)
  return f'did you mean {near[0]}?' if near else f'use one of {", ".join(choices)}'


def arguments(argument, needs=None, **defaults):
  """Parse an experiment's 'size=small,runlocal': arguments(arg, size='tiny', runlocal=False) -> ConfigDict.

  A bare name means True. Values take the type of their default. needs: {name: another, without whose value it
  has no effect}. Raises ValueError for an unknown name, and for one without effect.
  """
  values, needs = ml_collections.ConfigDict(defaults), needs or {}
  for item in filter(None, argument.split(',')):
    name, equals, text = item.partition('=')
    if name not in defaults:
      hint = suggestion(name, defaults) if defaults else 'leave it out: this file takes none'
      raise ValueError(f'config argument {name!r} is not known\nfix: {hint}')
    kind = type(defaults[name])
    read = reading.parse_int if kind is int else kind
    try:
      values[name] = BOOLEANS[text.lower() if equals else 'true'] if kind is bool else read(text)
      if kind is not bool and not equals:
        raise ValueError('only True needs no value')
    except (KeyError, ValueError) as e:
      raise ValueError(
        f'argument {item!r} is not of type {kind.__name__}\nfix: give one; default: {name}={defaults[name]}'
      ) from e
  for name in needs.keys() & {item.partition('=')[0] for item in argument.split(',')}:
    if not values[needs[name]]:
      raise ValueError(f'{name}={values[name]} needs {needs[name]}\nfix: set it, or leave {name} out')
  return values


to_dict = dataclasses.asdict  # nested; tuples stay tuples
RENAMED = {'window_pattern': 'layer_pattern'}  # keys of older runs
BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}
