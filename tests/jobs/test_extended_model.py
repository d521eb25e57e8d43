"""An imported text model that learns pictures and sounds: trained, resumed, sampled and scored."""

import dataclasses

import jax
import numpy as np
import pytest

from gpt_jax import config, train
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.interop import huggingface
from gpt_jax.jobs import extended_model
from gpt_jax.model import adapters, gpt
from gpt_jax.sampling import completions
from gpt_jax.step import params_of
from gpt_jax.tokenizers import SPECIALS, Tokenizers, subword
from tests import command_line, models, tiny_runs
from tests.interop.test_interop import write
from tests.tokenizers.test_tokenizers import make


def import_bytes(folder, name='gpt2'):
  """Import a tiny model of others, which has bytes and no special tokens -> its run folder."""
  write(folder / 'source', name, Tokenizers.build(make('bytes'), specials=()))
  huggingface.import_run(folder / 'source', folder / 'base')
  return folder / 'base'


def extension(base, **changes):
  """A config that trains an imported run on digits and keypad tones."""
  run = config.of_run(base)
  media = {key: value for key, value in tiny_runs.MEDIA.items() if key != 'model'}
  cfg = tiny_runs.section(**{key.replace('.', '__'): value for key, value in media.items()} | changes)
  cfg.model, cfg.tokenizer = config.section(run.model), config.section(run.tokenizer)
  cfg.train.update(init_from=str(base), steps=4, length=32, eval_every=2, sample_every=0)
  cfg.checkpoint.every = 2
  return config.build(config.Config, cfg)


def test_new_rows_begin_at_the_mean_and_old_ones_stay(tmp_path):
  base = import_bytes(tmp_path)
  run = trained.load(base)
  old, new = run.tokenizers.vocabulary.size, 300
  model = models.fill(dataclasses.replace(run.model.cfg, vocab=new))
  mesh = models.mesh(fsdp=2, tensor=2)
  base, model = (jax.device_put(x, gpt.shardings(x, mesh)) for x in (run.model, model))
  loaded = extended_model.extend(params_of(base), model, old, new)
  before, after = models.params(run.model), models.params(loaded)
  for path, array in after.items():
    rows = slice(old) if path.endswith('_VD') else slice(None)
    np.testing.assert_array_equal(array[rows], before[path][rows], err_msg=path)
  table_VD = after['embed_VD']
  assert not table_VD[new:].any()
  deviation_D = table_VD[old:new] - table_VD[:old].mean(0)
  assert 0 < np.abs(deviation_D).max() < np.abs(table_VD[:old]).max()
  for path, array in params_of(loaded).items():
    assert array.sharding == params_of(model)[path].sharding, path


def test_parameters_that_a_run_leaves_out_are_named(caplog):
  model, frozen = models.fill(models.tiny()), {'head_VD': models.fill(models.tiny()).embed_VD}
  stored = params_of(model) | {
    path: np.zeros(2) for path in ('tower/up', 'tower/down', 'frame_MD', 'head_VD')
  }
  extended_model.extend(stored, model, model.cfg.V, model.cfg.V, frozen)
  assert caplog.messages == ['train.init_from has frame_MD, tower, which this run leaves out']
  caplog.clear()
  extended_model.extend(params_of(model), model, model.cfg.V, model.cfg.V)
  quantized = adapters.QuantizedBase(model, {})
  extended_model.extend(params_of(model), {}, model.cfg.V, model.cfg.V, quantized)
  assert not caplog.messages


@pytest.mark.slow
def test_two_processes_begin_with_the_weights_of_one(tmp_path):
  """Each holds its shards of the extended tables; after no step both runs are equal."""
  base = import_bytes(tmp_path, 'llama')
  (tmp_path / 'qa.jsonl').write_text(''.join(f'{{"q": "q{i}", "a": "two"}}\n' for i in range(40)))
  settings = {
    'data.mixture.text.kind': 'jsonl',
    'data.mixture.text.path': tmp_path / 'qa.jsonl',
    'data.mixture.text.template': '{q} -> {a}',
    'data.packing': 'first_fit',
    'optim.lr': 0.0,
    'train.steps': 1,
    'train.length': 16,
    'train.eval_every': 0,
    'train.tasks': '()',
    'mesh.data': 1,
    'mesh.fsdp': -1,
  }
  words = ['train', f'--config={command_line.ROOT}/experiments/finetune.py:base={base},runlocal']
  words += [f'--config.{key}={value}' for key, value in settings.items()]
  codes, outputs = command_line.ended(
    command_line.start_all(2, *words, f'--workdir={tmp_path / "two"}', folder=tmp_path)
  )
  assert codes == [0, 0], outputs
  code, output = command_line.launch(*words, f'--workdir={tmp_path / "one"}', folder=tmp_path)
  assert code == 0, output
  one, two = (models.params(trained.load(tmp_path / name).model) for name in ('one', 'two'))
  assert len(one['embed_VD']) > 256
  for path, array in one.items():
    np.testing.assert_allclose(two[path], array, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_imported_model_learns_pictures_and_sounds(name, tmp_path):
  base = import_bytes(tmp_path, name)
  cfg = extension(base)
  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
  train.train(cfg, tmp_path / 'run')  # resumed
  train.train(cfg, tmp_path / 'whole')
  run, whole = trained.load(tmp_path / 'run'), trained.load(tmp_path / 'whole')
  assert run.step == 4
  for path, array in models.params(run.model).items():
    np.testing.assert_array_equal(array, models.params(whole.model)[path], err_msg=path)
  vocabulary = run.tokenizers.vocabulary
  assert min(vocabulary.start(kind) for kind in ('special', 'image0', 'audio0')) == 256
  assert {n for n, _ in vocabulary.specials} >= set(SPECIALS)
  for to in ('image', 'audio', 'text', 'any'):
    settings = dataclasses.replace(run.cfg.sample, max_new_tokens=20)
    start = [] if to in ('text', 'any') else [vocabulary.special({'image': 'boi', 'audio': 'boa'}[to])]
    [[(ids, _)]] = completions.generate_ids(run.model, run.tokenizers, [[97, *start]], settings, to)
    assert ids
  rows = evaluate.run_tasks(run.subject(), ['answer', 'perplexity'], limit=8)
  assert {row['source'] for row in rows} >= {'read', 'listen'}


@pytest.mark.slow
def test_adapters_of_an_imported_model_learn_pictures_and_sounds(tmp_path):
  base = import_bytes(tmp_path, 'llama')
  frozen = extension(base, adapter={'rank': 2})
  cause = r"ids are new and the rows of embed_VD, head_VD are frozen\nfix: .*adapter.train=\"\('embed"
  with pytest.raises(ValueError, match=cause):
    train.train(frozen, tmp_path / 'run')
  cfg = extension(base, adapter={'rank': 2, 'train': ('embed_VD', 'head_VD')})
  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
  train.train(cfg, tmp_path / 'run')  # resumed
  train.train(cfg, tmp_path / 'whole')
  run, whole = trained.load(tmp_path / 'run'), trained.load(tmp_path / 'whole')
  for path, array in models.params(run.model).items():
    np.testing.assert_array_equal(array, models.params(whole.model)[path], err_msg=path)
  before, after = models.params(trained.load(base).model), models.params(run.model)
  np.testing.assert_array_equal(after['final_norm/scale'], before['final_norm/scale'])
  assert len(after['embed_VD']) > len(before['embed_VD'])
  assert evaluate.run_tasks(run.subject(), ['perplexity'], limit=8)


@pytest.mark.slow
def test_codes_that_nothing_reads_need_no_trained_rows(tmp_path, monkeypatch):
  """Of a frozen model whose tokenizer sets ids aside for specials; features have matrices of their own."""
  reserved = property(lambda tokenizer: tuple(range(128, 144)), lambda tokenizer, ids: None)
  monkeypatch.setattr(subword.LibraryTokenizer, 'reserved', reserved)
  base = import_bytes(tmp_path, 'llama')
  sources = {
    'read': {'kind': 'digits', 'template': '{image:patches} -> {name}'},
    'listen': {'kind': 'keypad', 'template': '{audio:frames} -> {name}', 'documents': 60},
  }
  adapter = {'rank': 2, 'train': ('patch_AD', 'frame_MD')}
  cfg = extension(base, adapter=adapter, data__mixture=sources, data__condition_dropout=0.0)
  train.train(cfg, tmp_path / 'run')
  before, run = models.params(trained.load(base).model), trained.load(tmp_path / 'run')
  after = models.params(run.model)
  assert run.tokenizers.vocabulary.start('image0') == 256  # no range of specials
  assert np.abs(after['patch_AD']).max() > 0 and np.abs(after['frame_MD']).max() > 0
  for path in ('embed_VD', 'head_VD'):
    np.testing.assert_array_equal(after[path][:256], before[path])
    np.testing.assert_allclose(
      after[path][256:], np.tile(before[path].mean(0), (len(after[path]) - 256, 1)), 1e-5
    )
