"""A classifier of made-up words judges samples, and measures a model that was trained on such words."""

import json
import random
import shutil
import types

import pytest

from gpt_jax import train
from gpt_jax.data import Piece
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.evaluation.tasks import unsuitable
from gpt_jax.interop import model_card
from gpt_jax.runs import records
from tests import command_line, tiny_runs
from tests.tiny_runs import assert_two_lines

SETTINGS = {
  'tokenizer': {'kind': 'bytes'},
  'model': {'layers': 1, 'width': 32, 'heads': 2, 'context': 40},
  'optim': {'lr': 1e-2, 'warmup': 5, 'ema': 0.0},
  'train': {'batch_size': 32, 'eval_every': 0, 'sample_every': 0, 'sample_prompts': ()},
  'checkpoint': {'every': 0},
  'log': {'every': 100},
}


def documents(count, seed):
  """Texts of five words, of which some have the word that is unsuitable here."""
  rng = random.Random(seed)
  texts = [' '.join(rng.choices(['tam', 'rin', 'lo', 'zork'], (4, 4, 4, 1), k=5)) for _ in range(count)]
  return [{'text': text, 'label': 'bad' if 'zork' in text else 'good'} for text in texts]


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def finish(folder, name, template, steps):
  """Train on such texts -> the run folder."""
  paths = {
    key: write(folder / f'{name}{n}.jsonl', documents(500 - 400 * n, n)) for n, key in enumerate(PATHS)
  }
  mixture = {'posts': {'kind': 'jsonl', 'template': template, **paths}}
  cfg = tiny_runs.section(data__mixture=mixture, data={'packing': 'first_fit'}, **SETTINGS)
  cfg.train.steps = steps
  train.train(tiny_runs.config.build(tiny_runs.config.Config, cfg), folder / name)
  return folder / name


PATHS = ('path', 'valid_path')
pytestmark = pytest.mark.slow  # two trainings


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the runs `model`, `filter` and `classifier`."""
  folder = tmp_path_factory.mktemp('unsuitable')
  with tiny_runs.compiled_programs(tmp_path_factory):
    finish(folder, 'model', '{text}', 120)
    shutil.copytree(finish(folder, 'filter', '{text} -> {label}', 150), folder / 'classifier')
  return folder


@pytest.fixture
def run(folder, tmp_path_factory, monkeypatch):
  """The model; few continuations suffice."""
  monkeypatch.setattr(unsuitable, 'CONTINUATIONS', 4)
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield trained.load(folder / 'model')


def measure(run, folder, **sampling):
  """{(metric, prompts): row} of the task."""
  classifier = trained.load_judge(f'{folder}/classifier:bad|good', '--classifier')
  options = dict(limit=40, max_new_tokens=12) | sampling
  rows = evaluate.run_tasks(run.subject(), ['unsuitable'], classifier=classifier, **options)
  return {(row['metric'], row.get('prompts')): row for row in rows}


def test_the_classifier_knows_the_word(folder, run):
  judge = trained.load_judge(f'{folder}/filter:bad|good')
  rows = documents(60, 7)
  scores = judge.score([[Piece('text', row['text'])] for row in rows])
  assert sum((s >= 0.5) == (row['label'] == 'bad') for s, row in zip(scores, rows, strict=True)) >= 58


def test_samples_are_measured_without_filters_and_with_each(folder, run):
  free = measure(run, folder)
  judged = measure(run, folder, judge=f'{folder}/filter:bad|good')
  blocked = measure(run, folder, block=('/z/',))
  rate = lambda rows: rows['unsuitable_rate', 'neutral']['value']
  assert rate(free) > 0.1 and rate(judged) < 0.05 and rate(blocked) < 0.6 * rate(free)
  for kind in ('neutral', 'provoking'):
    row = free['unsuitable_rate', kind]
    assert row['interval'][0] <= row['value'] <= row['interval'][1]
    assert row['value'] <= free['any_unsuitable', kind]['value']
    assert 0 <= row['baseline'] <= 1
  assert free['any_unsuitable', 'neutral']['value'] == pytest.approx(
    free['expected_maximum', 'neutral']['value'], abs=0.15
  )
  assert sum(free['unsuitable_rate', kind]['n'] for kind in ('neutral', 'provoking')) == 40
  assert ('refusals', 'neutral') not in free and ('false_blocks', None) not in free
  assert judged['refusals', 'neutral']['value'] < 0.2
  assert judged['false_blocks', None]['value'] == blocked['false_blocks', None]['value'] == 0.0
  bits = [rows['bits_per_byte', None] for rows in (free, judged, blocked)]
  assert bits[0]['value'] == bits[1]['value'] == bits[2]['value']
  assert 0.3 < bits[0]['value'] < 2 and bits[0]['interval'][0] < bits[0]['value'] < bits[0]['interval'][1]


def test_false_blocks_count_harmless_texts_that_a_list_matches(folder, run):
  rows = measure(run, folder, block=('rin',))
  texts = [row['text'] for row in documents(100, 1)]
  expected = [('rin' in text.split()) for text in texts if 'zork' not in text]
  assert rows['false_blocks', None]['value'] == pytest.approx(sum(expected) / len(expected), abs=0.2)


def test_judged_samples_of_a_run_have_no_such_word(folder, run):
  options = dict(num_samples=24, max_new_tokens=16)
  [free] = run.generate(['tam '], **options)
  [judged] = run.generate(['tam '], judge=f'{folder}/filter:bad|good', refusal='(no)', **options)
  assert sum('zork' in text for text in free) > 3
  assert not any('zork' in text for text in judged)
  assert sum(a == b for a, b in zip(free, judged, strict=True)) > 6


def test_the_command_line_measures_and_keeps_no_text(folder, run, capsys, monkeypatch):
  call = command_line.in_process(capsys, monkeypatch)
  options = ('--tasks=unsuitable', '--limit=8', '--max_new_tokens=6', f'--workdir={folder}/model')
  code, out, err = call('evaluate', *options, f'--classifier={folder}/classifier:bad|good')
  assert code == 0, err
  rows = records.read_lines(folder / 'model/evaluations.jsonl')
  assert {row['metric'] for row in rows} >= {'unsuitable_rate', 'any_unsuitable', 'bits_per_byte'}
  assert not (folder / 'model/predictions.jsonl').exists() and 'zork' not in out + json.dumps(rows)
  card = model_card.write_card(run)
  lines = [f'{row["metric"]}, prompts {row["prompts"]} ' for row in rows if 'prompts' in row]
  assert lines and all(line in card for line in lines)
  command_line.assert_user_error(call('evaluate', *options), '--tasks=unsuitable needs a classifier')
  wrong = call('evaluate', *options, f'--classifier={folder}/classifier:bad')
  command_line.assert_user_error(wrong, '--classifier=', 'is not a run and its labels')


@pytest.mark.parametrize(
  ('sampling', 'cause'),
  [
    ({'judge': '{}/classifier:bad|good'}, 'which is the same run'),
    ({'temperature': 0.0}, 'sample.temperature=0 gives no others'),
    ({'beams': 2}, 'sample.beams=2 gives no others'),
  ],
)
def test_what_cannot_be_measured_is_refused(folder, run, sampling, cause):
  sampling = {key: value.format(folder) if key == 'judge' else value for key, value in sampling.items()}
  with pytest.raises(ValueError) as error:
    measure(run, folder, **sampling)
  assert_two_lines(error.value, cause)


def test_options_of_this_task_alone_are_refused_elsewhere(folder, run):
  subject, classifier = run.subject(), trained.load_judge(f'{folder}/classifier:bad|good')
  for options in ({'classifier': classifier}, {'judge': 'some:a|b'}):
    with pytest.raises(ValueError) as error:
      evaluate.run_tasks(subject, ['continue', 'perplexity'], **options)
    assert_two_lines(error.value, 'has no effect on --tasks=continue,perplexity')


def test_a_classifier_of_nan_is_an_error():
  classifier = types.SimpleNamespace(score=lambda rows: [0.5, float('nan')][: len(rows)])
  assert unsuitable.score(classifier, ['a']).tolist() == [0.5]
  with pytest.raises(ValueError) as error:
    unsuitable.score(classifier, ['a', 'b'])
  assert_two_lines(error.value, 'probabilities that are NaN')
