"""Vectors of the data: files and tables, places in rows, a model that learns from them."""

import base64
import json
import types

import numpy as np
import pytest

from gpt_jax import config, data, train
from gpt_jax.data import vectors
from gpt_jax.data.cache import to_float16
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.evaluation.tasks import answer, common
from gpt_jax.jobs import run_tokenizers
from gpt_jax.sampling import prompts
from gpt_jax.tokenizers import Tokenizers, readers
from gpt_jax.workbench.lab import models as lab_models
from tests import models, tiny_runs

NAMES = ('up', 'down')


def array_of(number):
  """One to three vectors of three numbers, which tell `up` from `down`."""
  rng = np.random.default_rng(number)
  values = 0.1 * rng.standard_normal((1 + number % 3, 3))
  values[:, 0] += 1 if number % 2 else -1
  return values


def write_jsonl(folder, count=40):
  for number in range(count):
    np.save(folder / f'{number}.npy', array_of(number))
  rows = (json.dumps({'v': f'{n}.npy', 'name': NAMES[n % 2]}) + '\n' for n in range(count))
  (folder / 'rows.jsonl').write_text(''.join(rows))
  return {'kind': 'jsonl', 'path': str(folder / 'rows.jsonl')}


def write_npz(folder, count=40):
  """All with two vectors: a table of arrays."""
  stacked = np.stack([np.tile(array_of(n)[:1], (2, 1)) for n in range(count)])
  np.savez(folder / 'rows.npz', v=stacked, name=np.array([NAMES[n % 2] for n in range(count)]))
  return {'kind': 'arrays', 'path': str(folder / 'rows.npz')}


def write_parquet(folder, count=40):
  pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
  import pyarrow.parquet

  table = {'v': [array_of(n).tolist() for n in range(count)], 'name': [NAMES[n % 2] for n in range(count)]}
  pyarrow.parquet.write_table(pa.table(table), folder / 'rows.parquet')
  return {'kind': 'parquet', 'path': str(folder / 'rows.parquet')}


SOURCES = {'jsonl': write_jsonl, 'npz': write_npz, 'parquet': write_parquet}


def experiment(source, template='{v:vectors} -> {name}', **changes):
  mixture = {'read': source | {'template': template}}
  quick = {'train__steps': 4, 'train__eval_every': 0, 'train__sample_every': 0, 'train__sample_prompts': ()}
  fields = {'data__mixture': mixture, 'data__packing': 'first_fit', 'tokenizer__kind': 'bytes', **quick}
  return config.build(config.Config, tiny_runs.section(**fields | changes))


@pytest.mark.parametrize('kind', SOURCES)
def test_vectors_stand_in_the_places_of_their_rows(kind, tmp_path):
  cfg = experiment(SOURCES[kind](tmp_path), encoder__stack=2)
  toks = run_tokenizers.build(cfg, tmp_path / 'run')
  cache = data.token_cache(cfg.data, 'read', toks, 'train', tmp_path / 'cache')
  fields = data.RowFields.of(cfg.data, toks)
  assert fields.features == (('vectors', 6),) and cache.media['skipped'] == 0
  batch = next(iter(data.eval_rows(cache, 32, 4, row_fields=fields.of_template('{v:vectors} -> {name}'))))
  at_BT = batch['token_ids_BT'] == toks.vocabulary.special('vector')
  assert at_BT.any() and not batch['vectors_BTU'][~at_BT].any()
  assert np.allclose(np.abs(batch['vectors_BTU'][at_BT][:, 0]), 1, atol=0.5)
  # The vectors carry no loss, the names do.
  targets = batch['target_ids_BT'][batch['loss_mask_BT'] > 0]
  assert set(bytes(targets[targets < 256].tolist()).decode()) <= set('updown')


@pytest.mark.parametrize(
  'kind, question, has_neighbors',
  [('npz', '', True), ('npz', ' Where to?', True), ('npz', ' {name}?', False), ('jsonl', '', False)],
)
def test_the_nearest_vectors_answer_one_question(kind, question, has_neighbors, tmp_path):
  template = f'{{v:vectors}}{question} -> {{name}}'
  cfg = experiment(SOURCES[kind](tmp_path), template, data__valid_fraction=0.3)
  subject = types.SimpleNamespace(cfg=cfg, tokenizers=run_tokenizers.build(cfg, tmp_path / 'run'), caches={})
  held_out, train_ = common.held_out_and_train(subject, 'read', 'valid', 100)
  answers = answer.baseline_answers(subject, held_out, train_, template, answer.BASELINES)
  names = [common.text(example.target) for example in held_out]
  assert set(names) == set(NAMES)
  assert answers == ({'nearest neighbor': names} if has_neighbors else {})


def test_the_lab_passes_vectors_to_prompts(tmp_path):
  cfg = experiment(write_jsonl(tmp_path))
  run = types.SimpleNamespace(cfg=cfg, tokenizers=run_tokenizers.build(cfg, tmp_path / 'run'))
  content = base64.b64encode((tmp_path / '2.npy').read_bytes()).decode()
  prompt = lab_models.prompt_of(run, {'vectors': [content]})
  is_vector = np.array(prompt.ids) == run.tokenizers.layout.vector
  assert np.allclose(prompt.vectors[is_vector], array_of(2), atol=1e-6)
  mixture = {'read': {'template': '{v:vectors} -> {name}'}}
  assert lab_models.abilities({'data': {'mixture': mixture}}, tmp_path)['inputs'] == ['vectors']


def test_a_text_right_after_vectors_is_learned_whole(tmp_path):
  cfg = experiment(write_jsonl(tmp_path), '{v:vectors}{name}')
  toks = run_tokenizers.build(cfg, tmp_path / 'run')
  cache = data.token_cache(cfg.data, 'read', toks, 'train', tmp_path / 'cache')
  form = data.RowFields.of(cfg.data, toks).of_template('{v:vectors}{name}')
  batch = next(iter(data.eval_rows(cache, 32, 1, row_fields=form)))
  is_text = (batch['target_ids_BT'] < 256) & (batch['segment_ids_BT'] > 0)
  assert is_text.any() and batch['loss_mask_BT'][is_text & (batch['target_ids_BT'] > 0)].all()


@pytest.mark.slow
def test_a_model_learns_from_vectors_and_resumes(tmp_path, tmp_path_factory):
  cfg = experiment(write_jsonl(tmp_path), checkpoint__every=2, model__projector='mlp')
  with tiny_runs.compiled_programs(tmp_path_factory):
    assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
    train.train(cfg, tmp_path / 'run')
    train.train(cfg, tmp_path / 'whole')
    run, whole = (trained.load(tmp_path / name) for name in ('run', 'whole'))
  assert run.model.cfg.vector_values == 3
  for path, array in models.params(run.model).items():
    np.testing.assert_array_equal(array, models.params(whole.model)[path], err_msg=path)
  rows = evaluate.run_tasks(run.subject(), ['answer'], limit=8)
  assert {row['metric'] for row in rows} >= {'exact_match'}
  prompt = prompts.build_prompt(run, vectors=[str(tmp_path / '1.npy')])
  assert np.allclose(prompt.vectors[0], array_of(1)[0], atol=1e-6)
  [text] = run.generate([{'vectors': [array_of(1)]}], max_new_tokens=2)
  assert isinstance(text, str)


def test_a_vocabulary_from_before_there_were_vectors(tmp_path):
  cfg = experiment(write_jsonl(tmp_path))
  toks = run_tokenizers.build(cfg, tmp_path / 'run')
  names = {'vector': 'reserved'}
  specials = tuple((names.get(name, name), index) for name, index in toks.vocabulary.specials)
  old = tiny_runs.config.dataclasses.replace(toks.vocabulary, specials=specials)
  extended = Tokenizers(old, toks.text).extend(readers=toks.readers)
  assert extended.vocabulary == toks.vocabulary


@pytest.mark.parametrize(
  'value, words',
  [
    ([[1.0, 2.0], [3.0]], 'is not an array of numbers'),
    ([['a']], 'is not an array of numbers'),
    (np.zeros((0, 3)), 'has shape (0, 3)'),
    (np.zeros((2, 4)), 'has shape (2, 4), not [vectors, 3]'),
    (np.zeros((2, 2, 3)), 'has shape (2, 2, 3)'),
    (np.array([[1, np.nan, 0]]), 'has NaN, or a number beyond 65,504'),
    (np.array([[1, 1e30, 0]]), 'has NaN, or a number beyond 65,504'),
    (b'no array', 'is not a whole .npy file'),
    ('nowhere.npy', 'there is no file nowhere.npy'),
  ],
)
def test_arrays_that_are_no_vectors(value, words):
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    vectors.read_vectors(value, 3, 'rows.jsonl line 7')
  cause, _ = tiny_runs.assert_two_lines(error.value, words)
  assert cause.startswith('rows.jsonl line 7: ')


def test_pickles_are_not_read(tmp_path):
  np.save(tmp_path / 'bad.npy', np.array([{'a': 1}], object), allow_pickle=True)
  with pytest.raises(ValueError, match='bad.npy is not a whole .npy file'):
    vectors.read_vectors(str(tmp_path / 'bad.npy'))


def test_a_row_of_numbers_is_one_vector():
  assert vectors.read_vectors([1, 2, 3]).tolist() == [[1.0, 2.0, 3.0]]


def test_vectors_cannot_be_made():
  with pytest.raises(ValueError) as error:
    data.signature('{name} -> {v:vectors}')
  tiny_runs.assert_two_lines(error.value, "asks for 'v' as vectors, which can be read but not made")


def test_a_run_knows_the_width_of_inherited_vectors_without_the_data(tmp_path):
  cfg = experiment({'kind': 'jsonl', 'path': 'nowhere.jsonl'})
  with pytest.raises(ValueError, match='matches no file'):
    run_tokenizers.open_readers(cfg)
  opened = run_tokenizers.open_readers(cfg, {'vectors': readers.VectorReader(3)})
  assert opened['vectors'].feature_width == 3


def test_outputs_of_an_encoder_that_a_cache_cannot_hold():
  assert to_float16(np.float32([[65504.0, -1.0]]), 'see').dtype == np.float16
  with pytest.raises(ValueError) as error:
    to_float16(np.float32([[70000.0]]), 'see (train)')
  tiny_runs.assert_two_lines(error.value, 'data.mixture.see (train) has features up to 70,000')
