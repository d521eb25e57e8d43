"""The benchmark of muP: its runs, what a transferred rate loses, and that it goes on."""

import json

import pytest

from benchmarks import mup
from gpt_jax import config as configs
from tests import tiny_runs


@pytest.fixture
def tiny(tmp_path, monkeypatch, tmp_path_factory):
  """Runs of two steps on made words."""
  make = mup.make_config

  def make_tiny(*args):
    section = configs.section(make(*args))
    section.data.mixture = {'text': {'kind': 'synthetic', 'documents': 40}}
    section.data.packing = 'split'
    section.model.update(layers=1, context=16)
    section.train.update(batch_size=2)
    return configs.build(configs.Config, section)

  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path))
  monkeypatch.setattr(mup, 'make_config', make_tiny)
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield tmp_path / 'runs'


@pytest.mark.slow
def test_runs_of_all_widths_and_rates_go_on_where_they_stopped(tiny, tmp_path):
  measure = lambda: mup.measure(tiny, widths=(16, 32), rates=(1e-2,), steps=2)
  rows = measure()
  assert [(row['mup'], row['width']) for row in rows] == [(False, 16), (False, 32), (True, 16), (True, 32)]
  names = sorted(path.name for path in tiny.iterdir())
  assert names == ['mup-32-0.01', 'standard-16-0.01', 'standard-32-0.01']
  assert rows[0]['loss'] == rows[2]['loss'] and rows[1]['loss'] != rows[3]['loss']
  began = [path.stat().st_mtime_ns for path in sorted(tiny.glob('*/result.json'))]
  assert measure() == rows
  assert began == [path.stat().st_mtime_ns for path in sorted(tiny.glob('*/result.json'))]
  mup.draw(rows, tmp_path / 'mup.png')
  assert (tmp_path / 'mup.png').stat().st_size > 5000


def test_what_a_transferred_rate_loses():
  losses = {
    (False, 8): (3.0, 2.0, 2.5),
    (False, 16): (1.5, 1.8, None),
    (True, 8): (3.0, 2.0, 2.5),
    (True, 16): (2.0, 1.4, 1.6),
  }
  rows = [
    {'mup': has_mup, 'width': width, 'rate': rate, 'loss': loss}
    for (has_mup, width), of in losses.items()
    for rate, loss in zip((0.1, 0.2, 0.4), of, strict=True)
  ]
  summary = mup.summarize(rows)
  assert summary['without']['16']['best rate'] == 0.1 and summary['muP']['16']['best rate'] == 0.2
  assert summary['without']['16']['lost'] == pytest.approx(0.3) and summary['muP']['16']['lost'] == 0
  json.dumps(summary, allow_nan=False)
