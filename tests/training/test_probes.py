"""Probes measure what the model and its step compute, and change neither."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import step, train
from gpt_jax.jobs.modality_objective import modality_objective
from gpt_jax.model import gpt
from gpt_jax.optim import Optimizer
from gpt_jax.runs import records, run_folder
from gpt_jax.tokenizers import modality_tables
from gpt_jax.tokenizers.learned import autoencoder
from gpt_jax.training import probes
from tests import models, tiny_runs

# ------------------------------------------------------------------------------------ activations

compiled_activations = jax.jit(probes.activations)


def batch(**extra):
  """Rows of the shape that other tests compile for."""
  return dict(token_ids_BT=models.tokens()) | extra


@pytest.mark.parametrize('name', ['rope', 'learned', 'multi_query', 'pattern', 'experts', 'mrope'])
def test_the_recorded_model_is_the_model(name):
  model = models.fill(models.tiny(**models.VARIANTS[name]))
  outputs = compiled_activations(model, batch())
  expected_BTV = models.logits(model, models.tokens())[..., :50]
  np.testing.assert_allclose(outputs['logits'], expected_BTV, rtol=2e-4, atol=2e-4)
  assert sorted(outputs) == sorted(probes.activation_paths(model.cfg))
  assert {'blocks/0/attention', 'blocks/1/mlp', 'blocks/1'} <= set(outputs)
  assert model.cfg.unroll == 'off' and isinstance(model, gpt.GPT)  # untouched


def test_branches_add_up_to_the_stream():
  cfg = models.tiny(residual_scale=0.5)
  outputs = compiled_activations(models.fill(cfg), batch())
  branches = outputs['blocks/1/attention'] + outputs['blocks/1/mlp']
  np.testing.assert_allclose(outputs['blocks/1'], outputs['blocks/0'] + 0.5 * branches, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------- a step


def axes_of(model):
  return {path: p.axes for path, p in models.param_trees.named_params(model)}


def bound(cfg, accumulate, kinds, **sections):
  """A state on its way, a step without micro-batches, and the probe of one with them."""
  run = models.experiment(cfg, **sections)
  parts = Optimizer(run.optim, 12, axes_of(gpt.GPT(cfg))), modality_objective(run.loss, kinds)
  state = step.TrainState(
    step=jnp.int32(3),
    model=models.fill(cfg),
    opt_state=parts[0].init(step.params_of(models.fill(cfg))),
    key=jax.random.key(1),
    hyper=step.hyper_of(run),
  )
  dtype = cfg.dtype
  advance = jax.jit(functools.partial(step.train_step, *parts, 1, dtype))
  return state, advance, probes.compile_probe(*parts, accumulate, dtype, models.mesh())


TWO_KINDS = modality_tables.ModalityTables(
  names=('text', 'image'),
  modality_V=np.arange(64, dtype=np.int32) % 2,
  group_V=np.zeros(64, np.int32),
  allowed_NV=np.ones((1, 64), bool),
)


@pytest.mark.parametrize(
  ('kinds', 'accumulate'),
  [pytest.param(None, 1, marks=pytest.mark.slow), (TWO_KINDS, 2)],
  ids=['text', 'modalities, accumulated'],
)
def test_a_probe_measures_the_step_that_follows(kinds, accumulate):
  """Dropout included: its gradients and updates are those of a step on the first micro-batch."""
  cfg = models.tiny(dropout=0.2, positions='none')
  sections = dict(loss=dict(image=3.0)) if kinds else {}
  state, advance, probe = bound(cfg, accumulate, kinds, **sections)
  rows = probes.by_layer(probe(state, models.batch()))
  before = models.params(state.model)
  first = {name: value[::accumulate] for name, value in models.batch().items()}
  after, metrics = advance(state, first)
  for path, new in models.params(after.model).items():
    change = new - before[path]
    if path.startswith('blocks/'):
      for l in range(2):
        row = rows[path.replace('blocks/', f'blocks/{l}/')]
        assert row['update'] == pytest.approx(np.sqrt((change[l] ** 2).mean()), rel=1e-3)
    else:
      row = rows[path]
      assert row['update'] == pytest.approx(np.sqrt((change**2).mean()), rel=1e-3)
      assert row['parameter'] == pytest.approx(np.sqrt((before[path] ** 2).mean()), rel=1e-4)
  size = lambda path: before[path].size
  squares = 0.0
  for path in before:
    of_layers = [path.replace('blocks/', f'blocks/{l}/') for l in range(2)]
    places = of_layers if path.startswith('blocks/') else [path]
    squares += sum(rows[p]['gradient'] ** 2 for p in places) * size(path) / len(places)
  assert math.sqrt(squares) == pytest.approx(float(metrics['grad_norm']), rel=1e-4)


def test_rows_are_named_by_layer_in_order():
  actual = {'blocks/mlp/up_DF': {'update': np.arange(11.0)}, 'blocks/2/mlp': {'activation': 1.0}}
  rows = probes.by_layer(actual | {'embed_VD': {'update': np.float32(2)}})
  layers = [path for path in rows if path.endswith('up_DF')]
  assert layers == [f'blocks/{l}/mlp/up_DF' for l in range(11)]
  assert rows['blocks/10/mlp/up_DF'] == {'update': 10.0}
  assert rows['blocks/2/mlp'] == {'activation': 1.0} and rows['embed_VD'] == {'update': 2.0}


def test_padding_does_not_count():
  x_BTD = jnp.asarray([[[3.0], [3.0], [100.0]]])
  packed = batch(segment_ids_BT=jnp.asarray([[1, 2, 0]]))
  assert float(probes.token_rms(x_BTD, probes.real_tokens(packed))) == pytest.approx(3)
  assert probes.real_tokens(batch()).min() == 1


@pytest.mark.slow
def test_a_learned_tokenizer_can_be_probed_too():
  """It has no activations by layer, but parameters like any model."""
  cfg = autoencoder.AutoencoderConfig((4, 4, 1), levels=(4, 4), width=8, hidden=8, blocks=1)
  model = models.nn.initialize(autoencoder.Autoencoder(cfg), jax.random.key(0))
  objective = step.Objective(
    weigh=lambda batch, hyper: (batch, jnp.float32(2)),
    loss=lambda model, probe, batch, *rest: autoencoder.loss(model, batch['x']),
    count=None,
  )
  optimizer = Optimizer(models.experiment(models.tiny()).optim, 12, axes_of(model))
  opt_state = optimizer.init(step.params_of(model))
  hyper = {'lr': jnp.float32(1), 'weight_decay': jnp.float32(0)}
  state = step.TrainState(jnp.int32(0), model, opt_state, jax.random.key(1), hyper)
  images = {'x': jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 1)), jnp.float32)}
  rows = probes.by_layer(
    probes.compile_probe(optimizer, objective, 1, 'float32', models.mesh())(state, images)
  )
  assert set(rows) == set(optimizer.axes)
  assert all(row['gradient'] > 0 for row in rows.values())


# ------------------------------------------------------------------------------------ comparisons


def test_activation_diff_shows_where_two_runs_diverge():
  model, other = (models.fill(models.tiny()) for _ in range(2))
  same = probes.activation_diff(model, other, batch())
  assert all(row[1:] == (0.0, 0.0) for row in same)
  up_LDF = other.blocks.mlp.up_DF
  up_LDF.set_value(up_LDF.get_value().at[1].multiply(1.01))
  rows = {path: rest for path, *rest in probes.activation_diff(model, other, batch())}
  different = [path for path, (largest, relative) in rows.items() if largest]
  assert different == ['blocks/1/mlp', 'blocks/1', 'final_norm', 'logits']
  assert 1e-3 < rows['blocks/1/mlp'][1] < 0.05
  a, b = (compiled_activations(m, batch())['blocks/1/mlp'] for m in (model, other))
  assert rows['blocks/1/mlp'][0] == pytest.approx(np.abs(a - b).max(), rel=1e-3)


def test_activation_diff_of_runs_of_other_shapes():
  """A run is anything with a model; what cannot be compared is said to be so."""
  run = dataclasses.make_dataclass('Run', ['model'])
  wide = run(models.fill(models.tiny(width=32)))
  rows = {path: rest for path, *rest in probes.activation_diff(models.fill(models.tiny()), wide, batch())}
  assert math.isnan(rows['blocks/0'][0]) and math.isnan(rows['blocks/0'][1])
  assert rows['logits'][1] > 0
  with pytest.raises(ValueError, match='50 and 40 ids.*\nfix: compare runs of one tokenizer'):
    probes.activation_diff(models.fill(models.tiny()), models.fill(models.tiny(vocab=40)), batch())


# ------------------------------------------------------------------------------------------ a run


@pytest.mark.slow
def test_probes_do_not_change_a_run(tmp_path_factory, tmp_path):
  """Also after a resumption: on the same batch as before, whatever was read since."""
  plain = tiny_runs.finished(tmp_path_factory)
  cfg = tiny_runs.experiment(train__probe_every=4)
  with tiny_runs.compiled_programs(tmp_path_factory):
    assert train.train(cfg, tmp_path, tiny_runs.stop_before(9)) is None
    result = train.train(cfg, tmp_path)
  assert result['valid_loss'] == run_folder.read_result(plain)['valid_loss']
  lines = records.read_lines(tmp_path / 'probes.jsonl')
  assert [line['step'] for line in lines] == [4, 8, 12]
  layers = lines[-1]['layers']
  assert layers['blocks/0/attention']['activation'] > 0
  of_embedding = layers['embed_VD']
  assert of_embedding['parameter'] > of_embedding['update'] > 0 < of_embedding['gradient']
  assert not (plain / 'probes.jsonl').exists()
