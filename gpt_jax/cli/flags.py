"""Flags that several verbs share, and their values."""

import dataclasses

from absl import flags

from gpt_jax.cli import args, config_help, experiment_file

FLAGS = flags.FLAGS
CHANGES_DATA = ('data.mixture.', 'data.valid_fraction', 'data.cache', 'data.packing')
DEFINE = {
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  tuple[str, ...]: flags.DEFINE_multi_string,
}


def define_workdir():
  """--workdir, required."""
  flags.DEFINE_string('workdir', None, 'run folder')
  flags.mark_flag_as_required('workdir')


def define_distributed():
  """Flags of a distributed job; a scheduler's environment variables stand in for them."""
  flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0; default: from the scheduler')
  flags.DEFINE_integer('processes', 0, 'processes of this job; 1: no others; default: from the scheduler')
  flags.DEFINE_integer('process', -1, 'index of this process, from 0; default: from the scheduler')


def define_sampling(but=(), **defaults):
  """A flag for each field of SampleConfig except `but`; defaults: help where it is not the run's value."""
  from gpt_jax.sample import SampleConfig

  texts = config_help.comments(SampleConfig)
  for field in dataclasses.fields(SampleConfig):
    if field.name not in but:
      default = defaults.get(field.name, 'from the run')
      DEFINE[field.type](field.name, None, f'{texts[field.name]}; default: {default}')


def sampling_overrides():
  """{field of SampleConfig: value} of the flags that are set."""
  from gpt_jax.sample import SampleConfig

  names = [field.name for field in dataclasses.fields(SampleConfig) if field.name in FLAGS]
  values = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
  return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def data_overrides(argv):
  """{key: value as text} of the arguments --config.data.KEY=VALUE; ValueError for other config keys."""
  overrides = {}
  for arg in args.config_overrides(argv):
    key, has_value, overrides[key] = arg.removeprefix('--config.').partition('=')
    if not has_value:
      raise experiment_file.no_value(arg)
    if not key.startswith('data.'):
      raise ValueError(
        f'--config.{key} cannot be changed after training, only keys of data\n'
        'fix: leave it out, or train a run with it'
      )
    if not key.startswith(CHANGES_DATA):
      raise ValueError(
        f'--config.{key} does not choose data: it is about how training makes rows\n'
        'fix: leave it out; data.mixture, data.valid_fraction and data.packing=first_fit for a template '
        "with media or ' -> ' can be changed"
      )
  return overrides


def require(name):
  """The value of a flag that must not be empty."""
  if not FLAGS[name].value:
    raise ValueError(f'--{name} is missing\nfix: add --{name}=...')
  return FLAGS[name].value
