"""The GPT as a job: losses and gradients by modality and source, balances, continuous inputs."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config, step, tokenizers, train
from gpt_jax.cluster.batches import to_devices
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.jobs import distillation, language_model, policy
from gpt_jax.jobs.modality_objective import modality_objective
from gpt_jax.model import gpt
from gpt_jax.model.kernels import target_places
from gpt_jax.runs import records
from gpt_jax.sampling import completions, prompts
from gpt_jax.sharding import MeshConfig, make_mesh
from gpt_jax.tokenizers import modality_tables
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines

MODALITIES = ('text', 'image', 'audio')
SOURCES = ('dial', 'draw', 'listen', 'read')
RESULTS = {}  # of `one_step`, by its changes


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def job(tmp_path_factory):
  """The tiny multimodal job."""
  return job_of(tmp_path_factory.mktemp('job'), experiment())


@pytest.fixture(scope='module')
def batch(job):
  """Its first batch."""
  return next(job.loader)


def experiment(**changes):
  return config.build(config.Config, tiny_runs.media(**changes))


def job_of(folder, cfg):
  mesh = make_mesh(cfg.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    return language_model.LanguageModelJob(cfg, folder, mesh)


def test_flops_that_mfu_counts_have_the_head_where_a_row_has_targets(tmp_path, monkeypatch):
  """Budgets and proofs count it everywhere, whatever the data."""
  monkeypatch.setattr(target_places, 'LARGE', 1)
  mixture = {name: tiny_runs.MEDIA['data.mixture'][name] for name in ('read', 'listen')}
  few = job_of(tmp_path / 'few', experiment(data__mixture=mixture))
  whole = job_of(tmp_path / 'whole', experiment(data__mixture=mixture, loss__restrict=True))
  assert 0 < few.places <= few.length / 2 and whole.places is None
  saved = 6 * few.model_cfg.vocab * few.model_cfg.width * (1 - few.places / few.length)
  assert few.flops == whole.flops == whole.step_flops
  assert few.flops['full'] - few.step_flops['full'] == pytest.approx(saved)
  for job in (distillation.DistillationJob, policy.PolicyJob):  # their losses read all logits
    assert job.training_places(None) is None


def test_validation_media_that_are_trained_on_too_are_counted(tmp_path, caplog):
  """Two sources of the same pictures, cut apart by different means."""
  assert 'trained on too' not in caplog.text
  job_of(tmp_path / 'whole', experiment())
  assert 'trained on too' not in caplog.text  # read and draw are cut by the pictures
  mixture = {name: dict(tiny_runs.MEDIA['data.mixture'][name]) for name in ('read', 'draw')}
  mixture['draw'] |= {'keep': 'label=0|1|2|3|4', 'valid_keep': 'label=5|6|7|8|9'}
  cfg = experiment(data__mixture=mixture, audio={})
  job = job_of(tmp_path / 'shared', cfg)
  [line] = [r.getMessage() for r in caplog.records if 'data.mixture.draw' in r.getMessage()]
  held, trained_on = job.caches['draw', 'valid'], job.loader.caches['read']
  shared = np.isin(held.media_hashes, trained_on.media_hashes).sum()
  assert 0 < shared < len(held.media_hashes) == len(held.offsets)
  assert f': {shared} of its {len(held.offsets)} validation images' in line


@pytest.mark.slow
def test_a_mixed_target_starts_as_in_training(tmp_path):
  """With a picture: nothing but the loss on its start marker says so."""
  mixture = {'both': {'kind': 'digits', 'template': '{name} -> {image:image}{name}'}}
  small = {'steps': 40, 'eval_every': 0, 'sample_every': 0, 'sample_prompts': ()}
  data_ = {'packing': 'first_fit', 'condition_dropout': 0.0}
  cfg = experiment(data__mixture=mixture, data=data_, audio={}, train=small)
  train.train(cfg, tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  given_ = prompts.build_prompt(run, 'seven', to='any')
  many = dataclasses.replace(run.cfg.sample, num_samples=20, max_new_tokens=24)
  [group] = completions.generate_ids(run.model, run.tokenizers, [given_], many, 'any')
  begun = [ids[0] == run.tokenizers.vocabulary.special('boi') for ids, _ in group]
  assert sum(begun) >= 18


def program(job, **changes):
  """The job's program with another loss or training section."""
  cfg = dataclasses.replace(
    job.cfg,
    **{name: dataclasses.replace(getattr(job.cfg, name), **values) for name, values in changes.items()},
  )
  kinds = modality_tables.ModalityTables.build(job.tokenizers, job.model_cfg.V)
  model_cfg = dataclasses.replace(job.model_cfg, **changes.get('model', {}))
  return step.gpt_program(
    cfg, model_cfg, job.mesh, modality_objective(cfg.loss, kinds, len(job.loader.names))
  )


def one_step(job, batch, **changes):
  """The first step -> (state before it, state after it, metrics); each program runs once."""
  if repr(changes) not in RESULTS:
    made = program(job, **changes)
    with jax.set_mesh(job.mesh):
      before = jax.device_get(made.init())
      state, metrics = made.step(made.init(), to_devices(batch, job.mesh))
    RESULTS[repr(changes)] = before, state, jax.device_get(metrics)
  return RESULTS[repr(changes)]


def logits(job, model, batch):
  """float64 logits [B, T, V] and the last hidden state."""
  x_BTD, _, _ = model.trunk(batch['token_ids_BT'], **gpt.inputs(job.model_cfg, batch))
  return np.asarray(model.logits(x_BTD), np.float64), np.asarray(x_BTD, np.float64)


def cross_entropy(logits_BTV, target_ids_BT):
  """Nats of each target, slowly."""
  nats_BT = np.zeros(target_ids_BT.shape)
  for b, t in np.ndindex(target_ids_BT.shape):
    row = logits_BTV[b, t] - logits_BTV[b, t].max()
    nats_BT[b, t] = np.log(np.exp(row).sum()) - row[target_ids_BT[b, t]]
  return nats_BT


def modality_of(toks, token):
  """0 text, 1 image, 2 audio, by the vocabulary's own words."""
  vocabulary = toks.vocabulary
  for number, (name, end) in enumerate((('image', 'eoi'), ('audio', 'eoa')), 1):
    inside = vocabulary.start(f'{name}0') <= token < vocabulary.start(f'{name}0') + (16, 8)[number - 1]
    if inside or token == vocabulary.special(end):
      return number
  return 0


def modality_BT(job, batch):
  of = functools.partial(modality_of, job.tokenizers)
  return np.vectorize(of)(batch['target_ids_BT'])


@pytest.fixture(scope='module')
def reference(job, batch):
  """(nats_BT, modality_BT, mask_BT, source_BT) of the first batch before the first step."""
  model = jax.device_get(program(job).init()).model
  logits_BTV, _ = logits(job, model, batch)
  source_BT = np.broadcast_to(batch['source_ids_B'][:, None], batch['target_ids_BT'].shape)
  nats_BT = cross_entropy(logits_BTV, batch['target_ids_BT'])
  return nats_BT, modality_BT(job, batch), batch['loss_mask_BT'], source_BT


# --------------------------------------------------------------------------- what is logged


@pytest.mark.parametrize('accumulate', [1, 4])
def test_losses_by_modality_and_source_are_means_over_their_targets(job, batch, reference, accumulate):
  _, _, metrics = one_step(job, batch, train={'accumulate': accumulate})
  nats_BT, modalities_BT, mask_BT, source_BT = reference
  assert len(set(batch['source_ids_B'])) == 4 and mask_BT.min() == 0  # all are in this batch
  mean = lambda of_BT: (nats_BT * mask_BT * of_BT).sum() / (mask_BT * of_BT).sum()
  actual = job.pop_scalars(stack(metrics))
  assert metrics['loss'] == pytest.approx(mean(np.ones_like(nats_BT)), rel=1e-4)
  for number, name in enumerate(MODALITIES):
    assert actual[f'loss/{name}'] == pytest.approx(mean(modalities_BT == number), rel=1e-4)
  for number, name in enumerate(SOURCES):
    assert actual[f'loss/source/{name}'] == pytest.approx(mean(source_BT == number), rel=1e-4)
  assert metrics['targets'] == mask_BT.sum() == metrics['targets_M'].sum()
  assert metrics['tokens'] == (batch['segment_ids_BT'] > 0).sum() > metrics['targets']


def test_tokens_are_counted_without_padding():
  """The last row of a stream holds its four last tokens, of which three are targets."""
  mask_BT = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], np.float32)
  actual = step.count_tokens({'loss_mask_BT': jnp.asarray(mask_BT)})
  assert {name: float(value) for name, value in actual.items()} == {'tokens': 10, 'targets': 9}
  segments_BT = np.array([[1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0]], np.int32)
  actual = step.count_tokens({'loss_mask_BT': mask_BT, 'segment_ids_BT': segments_BT})
  assert {name: float(value) for name, value in actual.items()} == {'tokens': 10, 'targets': 9}


def stack(*metrics):
  """Sums of steps, as the loop hands them over."""
  names = [n for n in metrics[0] if n.endswith(('_M', '_N'))]
  return {name: np.stack([m[name] for m in metrics]) for name in names}


def test_an_interval_is_the_mean_over_its_targets_not_over_its_steps(job):
  first = {'nats_M': np.array([10.0, 0, 4]), 'targets_M': np.array([10.0, 0, 1])}
  second = {'nats_M': np.array([90.0, 0, 0]), 'targets_M': np.array([30.0, 0, 0])}
  values = stack(first, second)
  actual = job.pop_scalars(values)
  assert actual == {'loss/text': 2.5, 'loss/audio': 4.0}  # an absent modality has no loss
  assert not values


def test_a_source_may_have_the_name_of_a_modality(job, monkeypatch):
  monkeypatch.setattr(job.loader, 'names', ['text', 'image'])
  told = {
    'nats_M': np.array([[1.0, 2, 3]]),
    'nats_N': np.array([[10.0, 20]]),
    'gradient_M': np.array([[1.0, 1, 2]]),
    'gradient_N': np.array([[3.0, 1]]),
    'targets_M': np.ones((1, 3)),
    'targets_N': np.ones((1, 2)),
  }
  assert job.pop_scalars(told) == {
    'loss/text': 1,
    'loss/image': 2,
    'loss/audio': 3,
    'loss/source/text': 10,
    'loss/source/image': 20,
    'gradient_share/text': 0.25,
    'gradient_share/image': 0.25,
    'gradient_share/audio': 0.5,
    'gradient_share/source/text': 0.75,
    'gradient_share/source/image': 0.25,
  }


@pytest.mark.parametrize('accumulate', [1, 4])
def test_gradient_shares_are_those_at_the_last_hidden_state(job, batch, reference, accumulate):
  before, _, metrics = one_step(job, batch, train={'accumulate': accumulate})
  actual = job.pop_scalars(stack(metrics))
  shares = [actual[f'gradient_share/{name}'] for name in MODALITIES]
  by_source = [actual[f'gradient_share/source/{name}'] for name in SOURCES]
  assert sum(shares) == pytest.approx(1, rel=1e-5) == sum(by_source)
  # The gradient of a target's loss there: (softmax - one-hot) times the head.
  _, modalities_BT, mask_BT, source_BT = reference
  logits_BTV, _ = logits(job, before.model, batch)
  error_BTV = np.exp(logits_BTV - logits_BTV.max(-1, keepdims=True))
  error_BTV /= error_BTV.sum(-1, keepdims=True)
  error_BTV -= np.eye(error_BTV.shape[-1])[batch['target_ids_BT']]
  head_VD = np.asarray(step.params_of(before.model)['embed_VD'], np.float64)
  norm_BT = np.linalg.norm(error_BTV @ head_VD, axis=-1) * mask_BT
  for labels_BT, actual in ((modalities_BT, shares), (source_BT, by_source)):
    norms = np.array([norm_BT[labels_BT == number].sum() for number in range(len(actual))])
    np.testing.assert_allclose(actual, norms / norms.sum(), rtol=1e-3)


def test_a_run_logs_losses_and_gradient_shares(tmp_path_factory):
  workdir = tiny_runs.media_finished(tmp_path_factory)
  lines = records.read_lines(workdir / 'metrics.jsonl')
  wanted = {f'loss/{name}' for name in (*MODALITIES, *(f'source/{name}' for name in SOURCES))}
  for line in lines:
    assert wanted <= line.keys()
    shares = [line[f'gradient_share/{name}'] for name in MODALITIES]
    assert sum(shares) == pytest.approx(1, rel=1e-4) and min(shares) > 0.01
    assert not any(name.endswith(('_M', '_N')) for name in line)
  for name in wanted:
    assert lines[-1][name] < lines[0][name] - 1
  assert {f'valid_loss/{name}' for name in SOURCES} <= lines[-1].keys()


def test_a_text_model_has_no_modalities(tmp_path):
  job = job_of(tmp_path, tiny_runs.experiment())
  assert modality_tables.ModalityTables.build(job.tokenizers, job.model_cfg.V).names == ('text',)
  with jax.set_mesh(job.mesh):
    _, metrics = job.program.step(job.program.init(), to_devices(next(job.loader), job.mesh))
  assert not [name for name in metrics if name.endswith(('_M', '_N'))]
  two = step.gpt_program(
    job.cfg, job.model_cfg, job.mesh, modality_objective(job.cfg.loss, sources=2)
  )  # of text, in two parts
  rows = job.example_batch() | {'source_ids_B': np.zeros(16, np.int32)}
  _, shapes = jax.eval_shape(two.pure, two.abstract, rows)
  actual = {name: x.shape for name, x in shapes.items() if name.endswith(('_M', '_N'))}
  assert actual == {'nats_N': (2,), 'targets_N': (2,), 'gradient_N': (2,)}


# ------------------------------------------------------------------------------ weights, balances

WEIGHTS = {'text': 0.125, 'image': 0.875, 'audio': 2.0}


def weighted(reference, balance, weights):
  """The definition: by token sum(w nats) / sum(w); by modality the weighted mean of means."""
  nats_BT, modalities_BT, mask_BT, _ = reference
  w_M = np.array([weights.get(name, 1.0) for name in MODALITIES])
  if balance == 'token':
    w_BT = w_M[modalities_BT] * mask_BT
    return (nats_BT * w_BT).sum() / w_BT.sum()
  means = [
    (nats_BT * mask_BT)[modalities_BT == m].sum() / mask_BT[modalities_BT == m].sum() for m in range(3)
  ]
  return (w_M * means).sum() / w_M.sum()


@pytest.mark.parametrize(
  'balance, cuts', [pytest.param('token', [4], marks=pytest.mark.slow), ('modality_mean', [1, 4])]
)
def test_loss_weights_are_of_the_whole_batch_for_any_accumulation(job, batch, reference, balance, cuts):
  targets = [(batch['loss_mask_BT'] * (reference[1] == m)).sum() for m in range(3)]
  assert len(set(targets)) > 1  # unequal counts
  parts = [batch['loss_mask_BT'][a::4].sum() for a in range(4)]
  assert len(set(parts)) > 1
  ends = []
  for accumulate in cuts:
    _, state, metrics = one_step(
      job, batch, loss={'balance': balance, **WEIGHTS}, train={'accumulate': accumulate}
    )
    expected = weighted(reference, balance, WEIGHTS)
    assert metrics['objective'] == pytest.approx(expected, rel=1e-4)
    assert metrics['targets'] == batch['loss_mask_BT'].sum()  # weights are no tokens
    plain = job.pop_scalars(stack(metrics))['loss/image']
    nats_BT, modalities_BT, mask_BT, _ = reference
    image_BT = mask_BT * (modalities_BT == 1)
    assert plain == pytest.approx((nats_BT * image_BT).sum() / image_BT.sum(), rel=1e-4)
    ends.append(step.params_of(state.model))
  for path, value in ends[0].items():
    np.testing.assert_allclose(ends[-1][path], value, rtol=1e-4, atol=1e-4, err_msg=path)
  assert weighted(reference, 'token', WEIGHTS) != pytest.approx(
    weighted(reference, 'modality_mean', WEIGHTS), rel=1e-4
  )


def untied(restrict, weight):
  """Changes of an experiment: a head of its own, and plain gradient descent."""
  return {
    'loss': {'image': weight, 'restrict': restrict},
    'model': {'tied_head': False},
    'optim': {'name': 'sgd', 'weight_decay': 0.0},
  }


def test_a_modality_of_weight_zero_gives_the_head_no_gradient(job, batch):
  """Of its rows, where the softmax is over what can stand there; else text pushes them down."""
  moved = {}
  toks = job.tokenizers
  rows = slice(toks.vocabulary.start('image0'), toks.vocabulary.start('image0') + 16)
  for restrict, weight in ((True, 0.0), (True, 0.5), (False, 0.0)):
    before, state, _ = one_step(job, batch, **untied(restrict, weight))
    old, new = (step.params_of(s.model)['head_VD'] for s in (before, state))
    moved[restrict, weight] = np.abs(np.asarray(new) - np.asarray(old))
  assert moved[True, 0.0][rows].max() == 0
  assert moved[True, 0.5][rows].max() > 1e-6 and moved[False, 0.0][rows].max() > 1e-6
  assert moved[True, 0.0][: rows.start].max() > 1e-6


def test_restricted_softmax(job, batch):
  """Over the ids that can stand where the target stands: text and markers, codes, or an end."""
  before, _, metrics = one_step(job, batch, **untied(True, 0.5))
  logits_BTV, _ = logits(job, before.model, batch)
  vocabulary, nats = job.tokenizers.vocabulary, []
  image = set(range(vocabulary.start('image0'), vocabulary.start('image0') + 16))
  audio = set(range(vocabulary.start('audio0'), vocabulary.start('audio0') + 8))
  eoi, eoa = vocabulary.special('eoi'), vocabulary.special('eoa')
  rest = set(range(vocabulary.size)) - image - audio - {eoi, eoa}
  for b, t in np.ndindex(batch['target_ids_BT'].shape):
    if batch['loss_mask_BT'][b, t]:
      target = batch['target_ids_BT'][b, t]
      for group in (image, audio | {eoa}, {eoi}, rest):
        if target in group or (target == eoa and group is audio):
          allowed = logits_BTV[b, t, sorted(group)]
      nats.append(np.log(np.exp(allowed).sum()) - logits_BTV[b, t, target])
  mean = metrics['nats_M'].sum() / metrics['targets_M'].sum()
  assert mean == pytest.approx(np.mean(nats), rel=1e-4)
  mask_BT = batch['loss_mask_BT']
  assert mean < (cross_entropy(logits_BTV, batch['target_ids_BT']) * mask_BT).sum() / mask_BT.sum() - 0.5


# ----------------------------------------------------------------------- templates and tokenizers

PLAIN = {'kind': 'synthetic', 'documents': 60}


@pytest.mark.parametrize(
  'changes, cause, fix',
  [
    ({'image': {}}, 'has image, and image.kind is empty', 'choose an image tokenizer'),
    ({'audio': {}}, 'has audio, and audio.kind is empty', 'choose an audio tokenizer'),
    (
      {'image': {}, 'data__mixture__read__template': '{image:patches} -> {name}'},
      'has image and patches',
      'choose an image',
    ),
    (
      {'data__mixture': {'t': PLAIN}, 'data': {}, 'audio': {}},
      'image.kind=patches has no use',
      "leave image.kind=''",
    ),
    (
      {'data__mixture': {'t': PLAIN}, 'data': {}, 'image': {}},
      'audio.kind=frames has no use',
      "leave audio.kind=''",
    ),
    ({'data__packing': 'crop'}, 'data.packing=crop', 'first_fit'),
    ({'data__mixture__read__template': '{picture:image} -> {name}'}, 'picture', ''),
    ({'image__codes': 100_000}, '100000', ''),
    ({'model__context': 16}, 'documents', ''),
    ({'model__param_dtype': 'float16'}, 'cannot be trained', 'param_dtype=float32'),
  ],
)
def test_templates_and_tokenizers_must_agree(changes, cause, fix, tmp_path):
  with pytest.raises(ValueError) as error:
    job_of(tmp_path, experiment(**changes))
  assert fix in assert_two_lines(error.value, cause)[1]


def test_a_run_with_images_is_not_resumed_without_them(tmp_path_factory, tmp_path):
  base = tiny_runs.media_finished(tmp_path_factory)
  with pytest.raises(ValueError) as error:
    job_of(tmp_path, experiment(train__init_from=str(base), image__codes=8))
  assert_two_lines(error.value, f'train.init_from={base}', 'image section')
  job = job_of(tmp_path, experiment(train__init_from=str(base)))
  assert job.tokenizers.hash == trained.load(base).tokenizers.hash


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path):
  with pytest.raises(ValueError) as error:
    job_of(tmp_path, experiment(model__vocab=280))
  assert_two_lines(error.value, 'ids and model.vocab=280')


@pytest.mark.parametrize(
  ('source', 'modality', 'task'), [('draw', 'image', 'draw'), ('dial', 'audio', 'speak')]
)
def test_beams_with_an_image_or_sound_source_fail_at_the_start(tmp_path, source, modality, task):
  mixture = {source: tiny_runs.MEDIA['data.mixture'][source]}
  cfg = experiment(data__mixture=mixture, sample={'beams': 2})
  with pytest.raises(ValueError) as error:
    job_of(tmp_path, cfg)
  assert_two_lines(error.value, f'sample.beams=2 cannot make the {modality} of data.mixture.{source}')
  with pytest.raises(ValueError) as error:
    evaluate.check_beams(types.SimpleNamespace(cfg=cfg), [task])
  assert_two_lines(error.value, f'sample.beams=2 cannot make the images or sounds of --tasks={task}')


def test_the_description_counts_ids(job):
  toks = job.tokenizers
  text = toks.vocabulary.size - 16 - 8 - 4  # codes, eoi, patch, eoa and frame
  line = job.describe()
  assert f'{text} text ids, 18 image ids, 10 audio ids' in line
  assert line.endswith('16 x 32 tokens a step, attention chunks')


def test_the_description_of_several_devices_names_the_sharded_state(tmp_path):
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  cfg = tiny_runs.experiment()
  with jax.set_mesh(mesh):
    line = language_model.LanguageModelJob(cfg, tmp_path, mesh).describe()
  kernel = 'attention xla (chunks cannot honor a mesh of 8 devices)'
  assert f'{kernel}, state of ' in line and ' arrays on data=2 x fsdp=4, 0.' in line


# ----------------------------------------------------------------------------- continuous inputs

CONTINUOUS = {
  'read': {'kind': 'digits', 'template': '{image:patches} -> {name}'},
  'listen': {'kind': 'keypad', 'template': '{audio:frames} -> {name}', 'documents': 60},
}


@pytest.mark.slow
def test_continuous_inputs_train_and_are_restored(tmp_path):
  data_ = {'packing': 'first_fit', 'prefix': True}
  cfg = experiment(data__mixture=CONTINUOUS, data=data_, train__eval_every=0)
  initial = step.params_of(job_of(tmp_path, cfg).program.init().model)
  result = train.train(cfg, tmp_path / 'run')
  first = records.read_lines(tmp_path / 'run/metrics.jsonl')[0]
  assert result['loss'] < first['loss'] - 1
  run = trained.load(tmp_path / 'run')
  assert (run.model.cfg.patch_values, run.model.cfg.frame_values) == (4, 160)
  params, stored = step.params_of(run.model), tiny_runs.arrays(tmp_path / 'run')
  for path, width in (('patch_AD', 4), ('frame_MD', 160)):
    assert params[path].shape == (width, 16)
    np.testing.assert_array_equal(params[path], stored[f'opt_state/ema/{path}'])
    assert np.abs(np.asarray(params[path]) - np.asarray(initial[path])).max() > 1e-3
  rows = evaluate.run_tasks(run.subject(), ('perplexity',))
  nats = [row['value'] for row in rows if row['metric'] == 'nats_per_token' and 'modality' not in row]
  assert np.mean(nats) == pytest.approx(result['valid_loss'], rel=1e-5)


def test_features_matter(tmp_path):
  """The image decides on what follows it: another one, other logits; its placeholder ids do not."""
  mixture = {'read': CONTINUOUS['read']}
  job = job_of(tmp_path, experiment(data__mixture=mixture, data={'packing': 'first_fit'}, audio={}))
  batch = next(job.loader)
  model = jax.device_get(job.program.init()).model
  before, _ = logits(job, model, batch)
  other = batch | {'patches_BTA': -batch['patches_BTA']}
  after, _ = logits(job, model, other)
  places = (batch['patches_BTA'] != 0).any(-1)
  assert places.any() and not places.all()
  assert set(batch['token_ids_BT'][places]) == {job.tokenizers.vocabulary.special('patch')}
  assert np.abs(before - after)[places].max() > 1e-4
  targets = batch['loss_mask_BT'] > 0
  assert (np.abs(before - after).max(-1)[targets] > 0).mean() > 0.9
  assert np.isfinite(before).all()


def test_validation_documents_that_are_too_long_are_refused_at_the_start(tmp_path):
  """Not at the first evaluation."""
  for name, words in (('train', 3), ('valid', 90)):
    lines = [json.dumps({'q': f'{n}?', 'a': 'a' * words}) for n in range(40)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  source = {
    'kind': 'jsonl',
    'path': str(tmp_path / 'train.jsonl'),
    'template': '{q} -> {a}',
    'valid_path': str(tmp_path / 'valid.jsonl'),
  }
  cfg = tiny_runs.experiment(data__mixture={'x': source}, data__packing='first_fit')
  with pytest.raises(ValueError) as error:
    language_model.LanguageModelJob(cfg, tmp_path / 'run', make_mesh(cfg.mesh, jax.devices()[:1]))
  assert_two_lines(error.value, 'x (valid) has 40 of 40 documents', 'longer than the 33 tokens')


def test_the_default_prompt_is_one_that_every_alphabet_has():
  toks = tokenizers.Tokenizers.build(tokenizers.text.CharTokenizer('ab'))
  cfg = tiny_runs.experiment()
  default = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, sample_prompts=('\n',)))
  assert language_model.resolve_prompts(default, toks) == ('',)
  named = {name: dataclasses.replace(s, template='{a} -> {b}') for name, s in cfg.data.mixture.items()}
  conditional = dataclasses.replace(
    default, data=dataclasses.replace(cfg.data, packing='first_fit', mixture=named)
  )
  assert language_model.resolve_prompts(conditional, toks) == ()
  other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, sample_prompts=('é',)))
  with pytest.raises(ValueError, match=r"train.sample_prompts has 'é', and character 'é'.*\nfix: "):
    language_model.resolve_prompts(other, toks)


def test_validation_data_without_a_target_are_refused_at_the_start(tmp_path):
  (tmp_path / 'train.txt').write_text('a text to learn from. ' * 50)
  (tmp_path / 'valid.txt').write_text('\n')
  paths = {'path': str(tmp_path / 'train.txt'), 'valid_path': str(tmp_path / 'valid.txt')}
  cfg = tiny_runs.experiment(data__mixture={'x': {'kind': 'text', **paths}})
  with pytest.raises(ValueError) as error:
    job_of(tmp_path / 'run', cfg)
  fix = assert_two_lines(error.value, 'data.mixture.x has no valid token')[1]
  assert 'data.valid_fraction=0.0' in fix and not (tmp_path / 'run/config.json').exists()


def test_conversations_without_a_reply_are_refused_at_the_start(tmp_path):
  messages = lambda n: {'messages': [{'role': 'user', 'content': f'question {n}'}]}
  (tmp_path / 'chats.jsonl').write_text(''.join(json.dumps(messages(n)) + '\n' for n in range(30)))
  source = {'kind': 'jsonl', 'path': str(tmp_path / 'chats.jsonl'), 'template': '{messages:chat}'}
  cfg = tiny_runs.experiment(data__mixture={'x': source}, data__packing='first_fit')
  with pytest.raises(ValueError) as error:
    job_of(tmp_path / 'run', cfg)
  assert_two_lines(error.value, 'data.mixture.x has no valid conversation with a reply')


def test_one_held_out_record_of_several_is_no_text_that_is_cut(tmp_path, caplog):
  (tmp_path / 'few.jsonl').write_text(''.join(f'{{"text": "{n} {"ab " * 200}"}}\n' for n in range(4)))
  source = {'kind': 'jsonl', 'path': str(tmp_path / 'few.jsonl')}
  job_of(tmp_path / 'run', tiny_runs.experiment(data__mixture={'x': source}))
  assert 'of one text' not in caplog.text


@pytest.mark.parametrize('separator', ['', '\n', '@@'])
def test_a_text_that_is_cut_in_two_is_said(tmp_path, caplog, separator):
  (tmp_path / 'names.txt').write_text('\n'.join(sorted(f'name {n}' for n in range(400))))
  source = {'kind': 'text', 'path': str(tmp_path / 'names.txt'), 'separator': separator}
  job_of(tmp_path / 'run', tiny_runs.experiment(data__mixture={'x': source}))
  assert ('data.mixture.x: validation data are the last 10% of one text' in caplog.text) == (
    separator != '\n'
  )
  assert ("another separator than '@@', which does not occur" in caplog.text) == (separator == '@@')
