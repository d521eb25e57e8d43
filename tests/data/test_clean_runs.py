"""Runs on cleaned data: counts in the run folder and the report, resuming, and a run as the filter."""

import json
from collections import Counter

import pytest

from gpt_jax.data import DataConfig, Source
from gpt_jax.data.clean import score
from gpt_jax.data.clean.cleaning import removed
from gpt_jax.data.clean.rule import Document
from gpt_jax.data.mixture import open_split
from gpt_jax.data.templates import Piece
from gpt_jax.runs import run_folder
from tests import tiny_runs
from tests.data_helpers import two_lines


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


def write(path, documents):
  path.write_text(''.join(json.dumps(document) + '\n' for document in documents))
  return str(path)


def test_counts_are_in_the_run_folder_and_a_resumed_run_is_the_same(tmp_path):
  texts = [f'Entry {n // 2} is by a{n // 2}@b.org.' for n in range(80)]
  path = write(tmp_path / 'a.jsonl', [{'text': text} for text in texts])
  mixture = {'notes': {'kind': 'jsonl', 'path': path, 'scrub': 'email', 'clean': 'exact'}}
  cfg = tiny_runs.experiment(data__mixture=mixture)
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  result = tiny_runs.train.train(cfg, whole)
  assert tiny_runs.train.train(cfg, stopped, lambda step: step == 6) is None
  assert tiny_runs.train.train(cfg, stopped)['valid_loss'] == result['valid_loss']
  for folder in (whole, stopped):
    events = [event['sources'] for event in run_folder.read_events(folder) if event['event'] == 'clean']
    expected = {'removed': {'exact': 40}, 'replaced': {'email': 40}}
    assert events and all(event == {'notes': expected} for event in events)
  page = (whole / 'report.html').read_text()
  assert 'removed: exact' in page and 'replaced: email' in page and 'a1@b.org' not in page


def test_a_judge_that_warns_at_length_is_read(tmp_path, monkeypatch):
  (tmp_path / 'loud.py').write_text(
    'import json, sys\n'
    'for line in sys.stdin:\n'
    '  print("x" * 300_000, file=sys.stderr)\n'  # more than a pipe holds
    '  print(json.dumps([[0.2, 0.9]] * len(json.loads(line))), flush=True)\n'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.setattr(score, 'JUDGE', 'loud')
  document = Document([Piece('text', 'a')], 'here')
  for sign, limit, stays in (('<', 0.95, True), ('<', 0.5, False), ('>', 0.1, True), ('>', 0.5, False)):
    rule = score.Score(f'run:a|b{sign}{limit}')
    rule.learn(iter([(0, document), (1, document)]))
    assert (rule.check(1, document) is None) == stays


@pytest.mark.slow  # loads a run in a process of its own
def test_a_run_judges_documents(tmp_path):
  rows = [{'t': f'{"bad" if n % 2 else "good"} {n % 7}', 'l': 'x' if n % 2 else 'y'} for n in range(200)]
  mixture = {
    'posts': {'kind': 'jsonl', 'path': write(tmp_path / 'train.jsonl', rows), 'template': '{t} -> {l}'}
  }
  fields = {'data': {'packing': 'first_fit'}, 'tokenizer': {'kind': 'bytes'}}
  cfg = tiny_runs.section(data__mixture=mixture, **fields)
  cfg.train.update(steps=50, eval_every=0, sample_every=0, sample_prompts=())
  judge = tmp_path / 'judge'
  tiny_runs.train.train(tiny_runs.config.build(tiny_runs.config.Config, cfg), judge)
  texts = ['good 1', 'bad 2', 'good 3', ' '.join(['good 4'] * 9 + ['bad 5'] * 9)]
  path = write(tmp_path / 'a.jsonl', [{'text': text} for text in texts])
  for clean, left in ((f'score={judge}:x|y<0.5', [0, 2]), (f'score={judge}:y|x>0.5', [0, 2])):
    data = DataConfig({'x': Source('jsonl', path, clean=clean)}, valid_fraction=0.0)
    notes = Counter()
    part = open_split(data, 'x', 'train')
    kept = [pieces[0].value for _, pieces in part.examples(None, notes)]
    assert kept == [texts[n] for n in left] and removed(notes) == {'score': 2}
    assert part.describe()['clean'][0][3]['run']
  image = Source('digits', template='{image:image}', clean=f'score={judge}:x|y<0.5')
  with two_lines(ValueError, 'score'):  # the judge reads texts
    data = DataConfig({'x': image}, valid_fraction=0.0, packing='first_fit')
    list(open_split(data, 'x', 'train').examples())


@pytest.mark.slow  # loads a run in a process of its own
def test_a_run_judges_pictures_that_are_arrays(tmp_path):
  """Two kinds of digits; those that the judge takes for ones are left out, by the path of files."""
  source = {'kind': 'digits', 'keep': 'label=0|1'}
  cfg = tiny_runs.media(data__mixture={'read': source | {'template': '{image:image} -> {name}'}}, audio={})
  cfg.train.update(steps=60, eval_every=0, sample_every=0)
  judge = tmp_path / 'judge'
  tiny_runs.train.train(tiny_runs.config.build(tiny_runs.config.Config, cfg), judge)
  filtered = Source(template='{name} -> {image:image}', clean=f'score={judge}:one|zero<0.5', **source)
  data = DataConfig({'x': filtered}, valid_fraction=0.0, packing='first_fit')
  notes = Counter()
  names = [pieces[0].value.strip() for _, pieces in open_split(data, 'x', 'train').examples(None, notes)]
  left, gone = Counter(names), removed(notes)['score']
  assert sum(left.values()) + gone == 360 and left['zero'] > 160 and left['one'] < 20
