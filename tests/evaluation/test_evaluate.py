"""Tasks on a trained model: every validation token is scored once, by the weights of the run."""

import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest

from gpt_jax import data
from gpt_jax.ablation import proof
from gpt_jax.data import Source
from gpt_jax.evaluation import evaluate, format, trained
from gpt_jax.evaluation.subject import Subject, score
from gpt_jax.evaluation.tasks import common, perplexity
from gpt_jax.runs import run_folder
from gpt_jax.sampling import completions
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines

T = 32  # length of the run's rows


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_runs.finished(tmp_path_factory)


@pytest.fixture(scope='module')
def subject(run, tmp_path_factory):
  """The finished run; token caches go elsewhere."""
  cache = tmp_path_factory.mktemp('cache')
  return dataclasses.replace(trained.load(run).subject(), cache_dir=cache)


def with_data(subject, section):
  """The same model on other data."""
  cfg = dataclasses.replace(subject.cfg, data=section)
  return dataclasses.replace(subject, cfg=cfg, caches={})


def on_text(subject, folder, text):
  """The same model on another validation text."""
  (folder / 'train.txt').write_text('not read')
  (folder / 'valid.txt').write_text(text)
  source = Source('text', str(folder / 'train.txt'), valid_path=str(folder / 'valid.txt'))
  return with_data(subject, dataclasses.replace(subject.cfg.data, mixture={'other': source}))


def valid_cache(subject):
  [name] = data.source_names(subject.cfg.data, 'valid')
  return data.token_cache(subject.cfg.data, name, subject.tokenizers, 'valid', subject.cache_dir)


def values(rows):
  """{metric: value}, once it is clear that all rows are about the same."""
  assert len({json.dumps({**row, 'metric': '', 'value': 0}) for row in rows}) == 1
  return {row['metric']: row['value'] for row in rows}


def plain_nats(subject, stride):
  """Nats of every token but the first, window by window, in numpy from uncached logits."""
  ids = np.asarray(valid_cache(subject).ids).astype(int)
  total, scored, rows = 0.0, set(), []
  starts = [0]
  while starts[-1] + T < len(ids) - 1:
    starts.append(starts[-1] + stride)
  for start in starts:
    row = ids[start : start + T]
    rows.append(np.pad(row, (0, T - len(row))))
  for first in range(0, len(rows), 64):
    piece = np.stack(rows[first : first + 64] + [rows[0]] * max(0, first + 64 - len(rows)))
    logits = np.asarray(models.logits(subject.model, piece.astype(np.int32)), np.float64)
    for start, row in zip(starts[first : first + 64], logits, strict=False):
      for place in range(T):
        target = start + place + 1
        if target >= len(ids) or target in scored:
          continue
        scored.add(target)
        peak = row[place].max()
        log_z = peak + math.log(np.exp(row[place] - peak).sum())
        total += log_z - row[place, ids[target]]
  assert scored == set(range(1, len(ids)))
  return total


@pytest.mark.parametrize('stride', [T, 20, 5])
def test_the_whole_text_is_scored_once_as_by_a_plain_loop(subject, tmp_path, stride):
  small = on_text(subject, tmp_path, 'bamaf teal sooz. ' * 12 + 'kain')
  rows = evaluate.run_tasks(small, ['perplexity'], stride=stride)
  actual, cache = values(rows), valid_cache(small)
  tokens = len(cache.ids) - 1
  assert len(cache.ids) == 17 * 12 + 4
  assert {(row['tokens'], row['stride'], row['source']) for row in rows} == {(tokens, stride, 'other')}
  nats = plain_nats(small, stride)
  assert actual['nats_per_token'] == pytest.approx(nats / tokens, rel=1e-5)
  assert actual['bits_per_token'] == pytest.approx(nats / tokens / math.log(2), rel=1e-5)
  assert actual['bits_per_byte'] == pytest.approx(nats / math.log(2) / cache.bytes, rel=1e-5)


def test_documents_that_training_keeps_whole_are_scored_whole(subject, tmp_path):
  """As each document alone after its start; windows, which cut some in two, give another number."""
  path, texts = tmp_path / 'texts.jsonl', ['bamaf teal sooz. kain'[: 5 + 7 * n % 17] for n in range(9)]
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
  mixture = {'short': Source('jsonl', str(path), valid_path=str(path))}
  whole = with_data(subject, dataclasses.replace(subject.cfg.data, mixture=mixture, packing='first_fit'))
  cache, total = valid_cache(whole), 0.0
  documents = np.split(np.asarray(cache.ids, np.int32), cache.offsets[1:])
  assert cache.start >= 0 and max(map(len, documents)) <= T and len(cache.ids) > 2 * T
  for ids in documents:
    row = np.pad([cache.start, *ids[:-1]], (0, T - len(ids))).astype(np.int32)
    logits_TV = np.asarray(models.logits(whole.model, row[None]), np.float64)[0, : len(ids)]
    peak_T1 = logits_TV.max(1, keepdims=True)
    log_z_T = peak_T1[:, 0] + np.log(np.exp(logits_TV - peak_T1).sum(1))
    total += (log_z_T - logits_TV[np.arange(len(ids)), ids]).sum()
  rows = evaluate.run_tasks(whole, ['perplexity'])
  assert values(rows)['nats_per_token'] == pytest.approx(total / len(cache.ids), rel=1e-5)
  assert 'stride' not in rows[0]
  windows = values(evaluate.run_tasks(whole, ['perplexity'], stride=T))
  assert abs(windows['nats_per_token'] / values(rows)['nats_per_token'] - 1) > 1e-4


def test_bytes_are_those_of_utf8(subject, tmp_path):
  text = 'é' * 50
  small = on_text(subject, tmp_path, text)
  actual = values(evaluate.run_tasks(small, ['perplexity']))
  assert valid_cache(small).bytes == 100
  total = actual['bits_per_token'] * 99
  assert actual['bits_per_byte'] == pytest.approx(total / 100, rel=1e-6)


def test_the_end_of_training_and_the_run_folder_agree(subject, run):
  """Training evaluates the average of the weights, and so does whoever opens the folder."""
  result = run_folder.read_result(run)
  assert evaluate.run_tasks(subject, ['perplexity']) == result['evaluations']
  assert values(result['evaluations'])['nats_per_token'] == result['valid_loss']


def test_batch_size_changes_no_score(subject):
  few = values(evaluate.run_tasks(dataclasses.replace(subject, batch_size=8), ['perplexity']))
  many = values(evaluate.run_tasks(dataclasses.replace(subject, batch_size=24), ['perplexity']))
  assert few == pytest.approx(many, rel=1e-6)


def test_a_short_text_is_not_padded_to_the_training_length(subject, monkeypatch):
  short = types.SimpleNamespace(ids=np.zeros(40, np.int32), start=-1, offsets=np.zeros(1, np.int64))
  monkeypatch.setattr(type(subject), 'cache', lambda *_: short)
  some = dataclasses.replace(subject.cfg.train, length=256)
  subject = dataclasses.replace(subject, cfg=dataclasses.replace(subject.cfg, train=some))
  shapes = lambda **given: {
    x['target_ids_BT'].shape[1] for x in perplexity.eval_batches(subject, 'text', 'valid', **given)
  }
  assert shapes() == {64} and shapes(stride=100) == {100} and shapes(length=32) == {32}


def test_a_limit_scores_a_part(subject):
  [nats, bits] = evaluate.run_tasks(subject, ['perplexity'], limit=600)
  assert (nats['metric'], bits['metric']) == ('nats_per_token', 'bits_per_token')
  assert nats['tokens'] == 1024  # the first two batches of 16 rows
  [whole, *_] = evaluate.run_tasks(subject, ['perplexity'])
  assert whole['tokens'] == len(valid_cache(subject).ids)
  assert nats['value'] != whole['value']
  rows = evaluate.run_tasks(subject, ['perplexity'], limit=10**9)
  assert rows[0] == whole


def test_all_tokens_of_documents_that_are_masked_are_scored(subject, tmp_path, monkeypatch):
  small = on_text(subject, tmp_path, 'bama. teal. sooz')
  section = dataclasses.replace(
    small.cfg.data,
    mask_documents=True,
    mixture={'other': dataclasses.replace(small.cfg.data.mixture['other'], separator='. ')},
  )
  masked = with_data(small, section)
  rows = evaluate.run_tasks(masked, ['perplexity'])
  cache = valid_cache(masked)
  assert len(cache.offsets) == 3
  assert rows[0]['tokens'] == len(cache.ids)
  assert {row['metric'] for row in rows} == {'nats_per_token', 'bits_per_token', 'bits_per_byte'}
  assert (
    perplexity.why_no_bytes(masked, 'other', 'valid', 9)
    == 'they need the whole split, and limit=9 scores a part'
  )
  without_start = types.SimpleNamespace(start=-1)
  monkeypatch.setattr(type(masked), 'cache', lambda *_: without_start)
  assert 'no start token' in perplexity.why_no_bytes(masked, 'other', 'valid', 0)


def test_bits_per_byte_leave_out_the_ends_of_documents(subject, tmp_path):
  small = on_text(subject, tmp_path, 'bama. teal. sooz')
  mixture = {'other': dataclasses.replace(small.cfg.data.mixture['other'], separator='. ')}
  chosen = with_data(small, dataclasses.replace(small.cfg.data, mixture=mixture))
  cache, eos = valid_cache(chosen), subject.tokenizers.vocabulary.special('eos')
  ids = np.asarray(cache.ids).astype(int)
  row = np.roll(ids, 1)
  row[np.asarray(cache.offsets)] = cache.start
  logits = np.asarray(models.logits(subject.model, np.pad(row, (0, T - len(row)))[None].astype(np.int32)))[0]
  logits = logits[: len(ids)].astype(np.float64)
  nats = np.logaddexp.reduce(logits, -1) - logits[np.arange(len(ids)), ids]
  actual = values(evaluate.run_tasks(chosen, ['perplexity']))
  assert (ids == eos).sum() == 3 and cache.bytes == 12
  assert actual['nats_per_token'] == pytest.approx(nats.mean(), rel=1e-5)
  assert actual['bits_per_byte'] == pytest.approx(nats[ids != eos].sum() / math.log(2) / 12, rel=1e-5)


def test_sources_are_scored_apart(subject):
  mixture = {name: Source('synthetic', documents=20, seed=seed) for seed, name in enumerate('ab')}
  section = dataclasses.replace(subject.cfg.data, mixture=mixture)
  both = with_data(subject, section)
  rows = [row for row in evaluate.run_tasks(both, ['perplexity']) if row['metric'] == 'nats_per_token']
  assert [row['source'] for row in rows] == ['a', 'b']
  alone = with_data(subject, dataclasses.replace(section, mixture={'b': mixture['b']}))
  assert evaluate.run_tasks(alone, ['perplexity'])[0] == rows[1]


def test_the_training_split_can_be_scored(subject):
  [row, *_] = evaluate.run_tasks(subject, ['perplexity'], split='train', limit=100)
  assert row['split'] == 'train'
  assert row['value'] < math.log(272) - 1


def test_bits_per_byte_count_only_bytes_that_the_tokens_give_back(subject, tmp_path, monkeypatch, caplog):
  text = on_text(subject, tmp_path, 'a b c d e f g h ' * 20)
  bits_per_byte = lambda: evaluate.run_tasks(dataclasses.replace(text, caches={}), ['perplexity'])[-1]
  exact, decode = bits_per_byte(), type(subject.tokenizers).decode_text
  monkeypatch.setattr(type(subject.tokenizers), 'decode_text', lambda *args: decode(*args).replace(' ', ''))
  lossy = bits_per_byte()
  assert exact['metric'] == lossy['metric'] == 'bits_per_byte' and 'bytes_lost' not in exact
  assert lossy['value'] == pytest.approx(2 * exact['value']) and lossy['bytes_lost'] == 0.5
  assert 'data.mixture.other: its tokens give back 50% of its bytes' in caplog.text


@pytest.mark.parametrize(
  ('text', 'decoded', 'count'),
  [
    ('An Ox.', 'An Ox.', 6),
    ('An Ox.', 'an ox.', 4),  # of the same length, without its case
    ('a b', 'ab', 2),
    ('ab', 'ab  and more', 2),
    ('\u00e9a', 'ea', 1),
    ('', 'x', 0),
  ],
)
def test_bytes_that_a_text_shares_with_what_was_decoded(text, decoded, count):
  assert perplexity.shared_bytes(text, decoded) == count


def test_a_longer_document_does_not_make_up_for_a_lost_one(subject, tmp_path, monkeypatch):
  small = on_text(subject, tmp_path, 'bama. teal')
  mixture = {'other': dataclasses.replace(small.cfg.data.mixture['other'], separator='. ')}
  both = with_data(small, dataclasses.replace(small.cfg.data, mixture=mixture))
  plain = type(subject.tokenizers).decode_text
  longer = lambda *args: plain(*args).replace('bama', 'bama and more').replace('teal', '')
  monkeypatch.setattr(type(subject.tokenizers), 'decode_text', longer)
  assert perplexity.decoded_bytes(both, 'other', 'valid') == len('bama')


@pytest.mark.parametrize('packing', ['crop', 'first_fit'])
@pytest.mark.parametrize('separator', ['', '. '])
def test_studies_know_whether_bits_per_byte_will_be_given(subject, tmp_path, packing, separator):
  small = on_text(subject, tmp_path, 'bama. teal. sooz')
  mixture = {'other': dataclasses.replace(small.cfg.data.mixture['other'], separator=separator)}
  chosen = with_data(small, dataclasses.replace(small.cfg.data, packing=packing, mixture=mixture))
  given = {row['metric'] for row in evaluate.run_tasks(chosen, ['perplexity'])}
  caches = {('other', 'valid'): chosen.cache('other', 'valid')}
  fields = dict(validation_digest=str, loss_settings=dict, loss_unit='per token')
  job = types.SimpleNamespace(tokenizers=chosen.tokenizers, caches=caches, **fields)
  _, scored_on = proof.validation_inputs(job, chosen.cfg)
  assert scored_on['bytes'] == ('bits_per_byte' in given)


def test_no_validation_data_give_no_rows(subject):
  section = dataclasses.replace(subject.cfg.data, valid_fraction=0.0)
  assert evaluate.run_tasks(with_data(subject, section), ['perplexity']) == []


def test_unscorable_requests_are_refused(subject, tmp_path):
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(subject, ['perplexity', 'perplexty'])
  assert_two_lines(error.value, '--tasks=perplexty')
  for stride in (-1, T + 1):
    with pytest.raises(ValueError) as error:
      evaluate.run_tasks(subject, ['perplexity'], stride=stride)
    assert_two_lines(error.value, f'stride={stride}')
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(on_text(subject, tmp_path, 'x'), ['perplexity'])
  assert_two_lines(error.value, 'data.mixture.other has no valid token')


def test_the_compiled_score_is_shared(subject):
  evaluate.run_tasks(subject, ['perplexity'], limit=1)
  compiled = score._cache_size()
  again = dataclasses.replace(subject, model=jax.tree.map(lambda x: x, subject.model))
  evaluate.run_tasks(again, ['perplexity'], limit=1)
  assert score._cache_size() == compiled


def test_answers_are_scored_and_their_questions_are_not(subject, tmp_path):
  """Text with a condition: only what the model has to make counts."""
  pairs = [{'q': f'{n} of bama', 'a': 'teal' if n % 3 else 'sooz ta'} for n in range(40)]
  (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
  source = Source('jsonl', str(tmp_path / 'pairs.jsonl'), template='{q} -> {a}')
  section = data.DataConfig(mixture={'pairs': source}, packing='first_fit', valid_fraction=0.5)
  asked = with_data(subject, section)
  row, _ = evaluate.run_tasks(asked, ['perplexity'])  # in nats, in bits
  actual = [pieces for _, pieces in data.examples(section, 'pairs', 'valid')]
  assert row['tokens'] == sum(len(pieces[-1].value) + 1 for pieces in actual)
  assert asked.target_nats(actual).sum() == pytest.approx(row['value'] * row['tokens'], rel=0.1)
  rows = evaluate.run_tasks(asked, ['answer'], limit=5, max_new_tokens=4)
  assert {row['n'] for row in rows} == {5}
  assert {row['metric']: row['value'] for row in rows}['exact_match'] == 0
  answers = sum(pieces[-1].value == 'teal' for pieces in actual)
  [exact, *_] = evaluate.run_tasks(asked, ['answer'], limit=len(actual), max_new_tokens=4)
  assert exact['chance'] == pytest.approx(answers / len(actual))


def test_a_new_task_costs_one_file_and_one_row(subject, monkeypatch):
  """A module with run and fits, and its row in TASKS: run_tasks, check_tasks and `all` know it."""
  task = types.ModuleType('count')
  task.fits = lambda condition, target: target == ('text',)

  def run(subject, source, split, limit, stride=0):
    rows = common.Rows('count', source, split, n=1)
    rows.add('characters', len(common.examples(subject, source, split, 1)[0].target[0].value), chance=0.0)
    return rows

  task.run = run
  before = evaluate.check_tasks(subject, ['all'])
  with monkeypatch.context() as patch:
    row = common.Task(task.run, task.fits, '{text}', options=('stride',))
    patch.setitem(evaluate.TASKS, 'count', row)
    assert evaluate.check_tasks(subject, ['all']) == [*before, 'count']
    [row] = evaluate.run_tasks(subject, ['count'])
    assert row['task'] == 'count' and row['value'] > 0
    assert format.format_row(row).startswith('count')
    assert len(format.summary_lines([row])) == 2
    with pytest.raises(ValueError) as error:
      evaluate.run_tasks(subject, ['count'], temperature=0.5)
    assert_two_lines(error.value, 'temperature=0.5', '--tasks=count')
  with pytest.raises(ValueError, match='--tasks=count is not a task'):
    evaluate.check_tasks(subject, ['count'])


def test_all_tasks_are_those_that_fit(subject):
  rows = evaluate.run_tasks(subject, ['all'])
  assert rows == evaluate.run_tasks(subject, ['perplexity'])
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(subject, ['perplexity', 'speak'])
  assert_two_lines(error.value, '--tasks=speak', '{name} -> {audio:audio}', "'{text}'")


def test_a_row_is_one_line():
  row = dict(task='draw', metric='accuracy', value=0.75, source='s', split='test', n=4)
  assert format.format_row(row).split() == ['draw', 'accuracy', '0.7500', 's', 'test,', 'n', '4']
  more = row | {'interval': [0.5, 0.9], 'chance': 0.1, 'baseline': 1.0, 'tokens': 7}
  text = 'draw accuracy 0.7500 [0.5000, 0.9000] chance 0.1000, baseline 1.0000, s test, n 4, 7 tokens'
  assert format.format_row(more).split() == text.split()


def test_free_text_is_scored_beside_the_text_itself(subject, tmp_path, monkeypatch):
  prompts, kept = [], []
  echo = lambda model, tokenizers, some, *_: prompts.extend(some) or [[(list(b'no no no'), None)]] * len(some)
  monkeypatch.setattr(completions, 'generate_ids', echo)
  monkeypatch.setattr(Subject, 'record', lambda self, rows, examples, **judged: kept.append(judged))
  other = on_text(subject, tmp_path, 'a b c d e f g h i j k l m n o p q r s t u v w x ' * 6)
  rows = evaluate.run_tasks(other, ['continue'], limit=3)
  assert len(prompts) == 3 and {len(prompt) for prompt in prompts} == {8}  # a quarter of the context
  assert {len(text) for text in kept[0]['targets']} == {8}  # sample.max_new_tokens
  scores = {row['metric']: (row['value'], row['baseline']) for row in rows}
  assert scores['repetition_2'] == (0.5, 0) and scores['distinct_1'][0] == 1 / 9
  assert scores['distinct_1'][1] > scores['distinct_1'][0]
  assert all(row['n'] == 3 for row in rows)
  with pytest.raises(ValueError) as error:
    evaluate.run_tasks(on_text(subject, tmp_path, 'too short'), ['continue'])
  assert_two_lines(error.value, 'no text of 16 tokens')
  assert 'continue' not in evaluate.check_tasks(subject, ['all'])
