"""Pictures and sounds in Parquet train the tasks of the demo as its own sources do."""

import dataclasses
import io

import numpy as np
import pytest

from experiments import demo as demo_experiment
from gpt_jax import config, train
from gpt_jax.cli import experiment_file
from gpt_jax.data import Source, media_io
from gpt_jax.data.sources import open_source
from gpt_jax.runs.records import read_lines
from tests import tiny_runs
from tests.data import test_tables


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


def demo(mixture, **changes):
  """The Config of the demo with other sources, on one line of training."""
  made = demo_experiment.get_config()
  made.data.mixture = mixture
  made.train.update(batch_size=8, eval_every=0, sample_every=0, eval_tokens=1024, **changes)
  made.model.update(layers=1, width=64, heads=2)
  made.log.every = 1
  return config.build(config.Config, experiment_file.complete_sources(made))


def as_parquet(folder, mixture):
  """The mixture with the pictures and sounds of its sources in columns of Parquet files, bit for bit."""
  import soundfile

  def record(fields, rate):
    media = {}
    if 'image' in fields:
      media['image'] = media_io.to_png(fields['image'])
    if 'audio' in fields:
      file = io.BytesIO()
      soundfile.write(file, fields['audio'], rate, format='WAV', subtype='FLOAT')
      media['audio'] = file.getvalue()
    return {**fields, **media}

  tables = {}
  for kind in ('digits', 'keypad'):
    rows = [
      record(fields, getattr(fields, 'rate', 0)) for _, fields in open_source(Source(kind), 'train').records()
    ]
    test_tables.write_parquet(folder / f'{kind}.parquet', rows)
    tables[kind] = {'kind': 'parquet', 'path': str(folder / f'{kind}.parquet')}
  return {name: {**source, **tables.get(source.get('kind'), {})} for name, source in mixture.items()}


@pytest.mark.slow
def test_pictures_and_sounds_in_parquet_train_the_tasks_of_the_demo(tmp_path):
  """The losses are those of the demo's own sources; all four tasks are scored on held-out rows."""
  mixture = demo_experiment.get_config().data.mixture.to_dict()
  tables = as_parquet(tmp_path, mixture)
  losses = []
  for number, sources in enumerate((mixture, tables)):
    cfg = demo(sources, steps=5, tasks=())
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, valid_fraction=0.0))
    train.train(cfg, tmp_path / str(number))
    losses.append([line['loss'] for line in read_lines(tmp_path / str(number) / 'metrics.jsonl')])
  assert len(losses[0]) == 5 and losses[0] == losses[1]
  result = train.train(demo(tables, steps=60, tasks=('answer', 'draw', 'speak')), tmp_path / 'scored')
  scored = {(row['task'], row['source']) for row in result['evaluations']}
  assert {('answer', 'name'), ('answer', 'listen'), ('draw', 'draw'), ('speak', 'dial')} <= scored
  losses = [line['loss'] for line in read_lines(tmp_path / 'scored' / 'metrics.jsonl')]
  assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
