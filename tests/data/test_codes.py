"""Codes of any codec in the data: files and tables, ids, a model that reads and makes them."""

import json

import numpy as np
import pytest

from gpt_jax import config, data, train
from gpt_jax.data import vectors
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.sampling import prompts
from tests import command_line, tiny_runs

NAMES = ('up', 'down')
BOOKS = (5, 5)


def codes_of(number):
  """Two to four positions of two codebooks; the first codebook tells `up` from `down`."""
  rng = np.random.default_rng(number)
  codes = rng.integers(0, 5, (2 + number % 3, 2))
  codes[:, 0] = 4 if number % 2 else 0
  return codes


def write_jsonl(folder, count=40):
  """Half of them as files, half as lists."""
  for number in range(count):
    np.save(folder / f'{number}.npy', codes_of(number).astype(np.int16))
  value = lambda n: f'{n}.npy' if n % 4 < 2 else codes_of(n).tolist()
  rows = (json.dumps({'c': value(n), 'name': NAMES[n % 2]}) + '\n' for n in range(count))
  (folder / 'rows.jsonl').write_text(''.join(rows))
  return {'kind': 'jsonl', 'path': str(folder / 'rows.jsonl')}


def write_npz(folder, count=40):
  stacked = np.stack([np.tile(codes_of(n)[:1], (3, 1)) for n in range(count)])
  np.savez(folder / 'rows.npz', c=stacked, name=np.array([NAMES[n % 2] for n in range(count)]))
  return {'kind': 'arrays', 'path': str(folder / 'rows.npz')}


def write_parquet(folder, count=40):
  pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
  import pyarrow.parquet

  table = {'c': [codes_of(n).tolist() for n in range(count)], 'name': [NAMES[n % 2] for n in range(count)]}
  pyarrow.parquet.write_table(pa.table(table), folder / 'rows.parquet')
  return {'kind': 'parquet', 'path': str(folder / 'rows.parquet')}


SOURCES = {'jsonl': write_jsonl, 'npz': write_npz, 'parquet': write_parquet}
FORMS = {'read': '{c:codes} -> {name}', 'make': '{name} -> {c:codes}'}


def experiment(source, forms=FORMS, **changes):
  mixture = {name: source | {'template': form} for name, form in forms.items()}
  quick = {'train__steps': 4, 'train__eval_every': 0, 'train__sample_every': 0, 'train__sample_prompts': ()}
  codes = {'kind': 'codes', 'codes': 5, 'books': 2, 'longest': 4, 'pattern': 'delay'}
  fields = {
    'data__mixture': mixture,
    'data__packing': 'first_fit',
    'tokenizer__kind': 'bytes',
    'audio': codes,
  }
  return config.build(config.Config, tiny_runs.section(**fields | quick | changes))


@pytest.mark.parametrize('kind', SOURCES)
def test_codes_become_ids_in_the_order_of_the_pattern(kind, tmp_path):
  cfg = experiment(SOURCES[kind](tmp_path))
  toks = run_tokenizers.build(cfg, tmp_path / 'run')
  assert [pair for pair in toks.vocabulary.ranges if pair[0].startswith('audio')] == [
    ('audio0', 5),
    ('audio1', 5),
  ]
  cache = data.token_cache(cfg.data, 'make', toks, 'train', tmp_path / 'cache')
  assert cache.media['sounds'] > 0
  special, starts = toks.vocabulary.special, [*cache.offsets, len(cache.ids)]
  for begin, end in zip(starts[:4], starts[1:5], strict=True):
    ids = cache.ids[begin:end].tolist()
    codes_PQ = toks.decode_codes('audio', ids[ids.index(special('boa')) + 1 : ids.index(special('eoa'))])
    is_up = bytes(i for i in ids[: ids.index(special('sep'))] if i < 256) == b'up'
    assert (codes_PQ[:, 0] == (0 if is_up else 4)).all()


@pytest.mark.slow
def test_a_model_reads_and_makes_codes(tmp_path, tmp_path_factory, capsys, monkeypatch):
  cfg = experiment(write_jsonl(tmp_path))
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(cfg, tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  rows = evaluate.run_tasks(run.subject(), ['classify'], limit=4)
  assert {(row['task'], row['source']) for row in rows} == {('classify', 'make')}
  prompt = prompts.build_prompt(run, sounds=[str(tmp_path / '1.npy')])
  expected = run.tokenizers.encode_codes('audio', codes_of(1))
  assert [i for i in prompt.ids if i in expected] == expected.tolist()
  out = tmp_path / 'sampled.npy'
  call = command_line.in_process(capsys, monkeypatch)
  flags = ('sample', f'--workdir={tmp_path}/run', '--prompt=up')
  assert call(*flags, '--to=codes', f'--out={out}')[0] == 0
  assert np.load(out).shape[1] == 2
  command_line.assert_user_error(call(*flags, '--to=audio'), 'the codes of this model have no codec')
  assert run.generate(['up'], to='codes')[0].shape[1] == 2
  with pytest.raises(ValueError, match='have no codec that plays them'):
    run.generate(['up'], to='audio')


@pytest.mark.parametrize(
  'value, words',
  [
    (np.zeros((2, 3), int), 'has shape (2, 3), not [positions, 2]'),
    (np.zeros(4, int), 'has shape (4,), not [positions, 2]'),
    (np.zeros((0, 2), int), 'has shape (0, 2)'),
    ([[0, 1], [2]], 'is not an array'),
    ([[0.0, 1.0]], 'is float64, not integers'),
    ([[0, 1], [-1, 0]], 'has the id -1, outside of codebooks of (5, 5) codes'),
    ([[0, 5]], 'has the id 5, outside of codebooks of (5, 5) codes'),
    (np.zeros((5, 2), int), 'has 5 positions, more than 4'),
    (b'no array', 'is not a whole .npy file'),
    ('nowhere.npy', 'there is no file nowhere.npy'),
  ],
)
def test_arrays_that_are_no_codes(value, words):
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    vectors.read_codes(value, BOOKS, 4, 'rows.jsonl line 7')
  cause, _ = tiny_runs.assert_two_lines(error.value, words)
  assert cause.startswith('rows.jsonl line 7: ')


def test_settings_that_do_not_fit_the_data(tmp_path):
  source = write_jsonl(tmp_path)
  with pytest.raises(ValueError) as error:
    run_tokenizers.build(experiment(source, audio={'kind': ''}), tmp_path / 'run')
  tiny_runs.assert_two_lines(error.value, 'has codes, and audio.kind is empty')
  with pytest.raises(ValueError) as error:
    experiment(source, audio={'kind': 'codes', 'pattern': 'late'})
  tiny_runs.assert_two_lines(error.value, 'audio.pattern=late is not possible')
  cfg = experiment(source, forms={'read': '{c:audio} -> {name}'})
  with pytest.raises(ValueError) as error:
    data.token_cache(
      cfg.data, 'read', run_tokenizers.build(cfg, tmp_path / 'run'), 'train', tmp_path / 'cache'
    )
  tiny_runs.assert_two_lines(error.value, 'needs audio tokens, which the model does not have')
  frames = experiment(source, forms={'read': '{c:frames} -> {name}'})
  with pytest.raises(ValueError) as error:
    language_model.resolve_model(frames, run_tokenizers.build(frames, tmp_path / 'run'))
  tiny_runs.assert_two_lines(error.value, 'has frames, and the tokenizers of this run make none')
  assert 'fix: set encoder.audio' in str(error.value)
  with pytest.raises(ValueError) as error:
    experiment(source | {'copies': 1, 'augment': 'speed=0.1'})
  tiny_runs.assert_two_lines(error.value, 'changes audio')


def test_codes_join_the_vocabulary_of_a_model_without_moving_an_id(tmp_path):
  cfg = experiment(write_jsonl(tmp_path))
  toks = run_tokenizers.build(cfg, tmp_path / 'run')
  text = type(toks).build(toks.text)
  extended = text.extend(audio=toks.audio)
  assert extended.vocabulary.specials == text.vocabulary.specials
  assert extended.vocabulary.start('audio0') == text.vocabulary.size
