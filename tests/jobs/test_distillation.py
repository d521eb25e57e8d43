"""Training on a teacher's predictions: the losses, the objective, and a run."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config, train
from gpt_jax.evaluation import trained
from gpt_jax.jobs import distillation
from gpt_jax.jobs.distillation_losses import DISTIL_LOSSES, DistilConfig, distance
from gpt_jax.runs import records
from gpt_jax.training import start
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines

LOGITS = np.random.default_rng(0).normal(0, 2, (2, 1, 3, 5)).astype(np.float32)


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


def softmax(x):
  e = np.exp(x.astype(np.float64))
  return e / e.sum(-1, keepdims=True)


def expected_forward_kl(q, p, beta):
  return (p * np.log(p / q)).sum(-1)


def expected_reverse_kl(q, p, beta):
  return (q * np.log(q / p)).sum(-1)


def expected_js(q, p, beta):
  m = beta * p + (1 - beta) * q
  return beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)


@pytest.mark.parametrize('name', DISTIL_LOSSES)
@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_losses_equal_their_formulas(name, temperature):
  cfg = DistilConfig(loss=name, temperature=temperature, beta=0.3)
  student, teacher = (softmax(x / temperature) for x in LOGITS)
  expected = temperature**2 * globals()[f'expected_{name}'](student, teacher, 0.3)
  np.testing.assert_allclose(distance(cfg, *LOGITS), expected, rtol=1e-4)


@pytest.mark.parametrize('name', DISTIL_LOSSES)
def test_equal_predictions_have_no_loss_and_no_gradient(name):
  value = lambda x: distance(DistilConfig(loss=name), x, jnp.asarray(LOGITS[0])).sum()
  loss, gradient = jax.value_and_grad(value)(jnp.asarray(LOGITS[0]))
  assert abs(loss) < 1e-5 and np.abs(gradient).max() < 1e-5


@pytest.mark.parametrize('name', DISTIL_LOSSES)
def test_impossible_ids_of_the_teacher_give_finite_gradients(name):
  teacher = jnp.asarray(LOGITS[1]).at[..., 0].set(-1e4)
  value = lambda x: distance(DistilConfig(loss=name), x, teacher).sum()
  assert np.isfinite(jax.grad(value)(jnp.asarray(LOGITS[0]))).all()


@pytest.mark.parametrize(
  'fields, cause',
  [
    ({'loss': 'mse'}, "distil.loss='mse'"),
    ({'temperature': 0.0}, 'distil.temperature=0.0'),
    ({'weight': 0.0}, 'distil.weight=0.0'),
    ({'beta': 1.0}, 'distil.beta=1.0'),
  ],
)
def test_wrong_settings_are_errors(fields, cause):
  with pytest.raises(ValueError) as error:
    DistilConfig(**fields)
  assert_two_lines(error.value, cause)


# ------------------------------------------------------------------------------------------ a run


def student(teacher, steps=8, changes=(), **distil):
  """The Config of a student half as wide as the tiny run."""
  train_ = {'job': 'distil', 'steps': steps, 'eval_every': 4, 'sample_every': 0} | dict(changes)
  return tiny_runs.experiment(
    model=tiny_runs.TINY['model'] | {'width': 8},
    optim=tiny_runs.TINY['optim'] | {'ema': 0.0},
    train=tiny_runs.TINY['train'] | train_,
    distil={'teacher': str(teacher)} | distil,
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(teacher's folder, student's folder, result)."""
  teacher = tiny_runs.finished(tmp_path_factory)
  workdir = tmp_path_factory.mktemp('distil') / 'run'
  return teacher, workdir, train.train(student(teacher), workdir)


def build(cfg, folder):
  mesh = train.make_mesh(config.MeshConfig())
  with jax.set_mesh(mesh):
    return distillation.DistillationJob(cfg, folder, mesh)


def test_the_divergence_falls_and_held_out_text_is_scored(finished):
  teacher, workdir, result = finished
  values = [line['kl'] for line in records.read_lines(workdir / 'metrics.jsonl') if 'kl' in line]
  assert len(values) == 8 and values[-1] < 0.7 * values[0]
  assert result['valid_loss'] > 0
  [parent] = result['parents']
  digest = start.parent_digests(build(student(teacher), workdir), student(teacher))
  assert parent['how'] == 'distil.teacher' and parent['digest'] == digest['distil.teacher']


def test_resumed_equals_uninterrupted(finished, tmp_path):
  teacher, workdir, result = finished
  assert train.train(student(teacher), tmp_path / 'run', tiny_runs.stop_before(5)) is None
  assert train.train(student(teacher), tmp_path / 'run')['loss'] == result['loss']
  both = [trained.load(folder).model for folder in (workdir, tmp_path / 'run')]
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), *both)))


def test_a_changed_teacher_is_not_resumed_with(finished, tmp_path):
  teacher, _, _ = finished
  copy = shutil.copytree(teacher, tmp_path / 'teacher')
  assert train.train(student(copy), tmp_path / 'run', tiny_runs.stop_before(3)) is None
  newest = max(int(path.name) for path in (copy / 'checkpoints').iterdir() if path.name.isdigit())
  shutil.rmtree(copy / 'checkpoints' / str(newest))
  with pytest.raises(ValueError, match='teacher'):
    train.train(student(copy), tmp_path / 'run')


def test_the_loss_mixes_distance_and_cross_entropy_and_is_0_for_the_teacher_itself(finished, tmp_path):
  teacher, _, _ = finished
  job = build(student(teacher, weight=0.25), tmp_path)
  with jax.set_mesh(job.mesh):
    batch = job.prepare_batch(next(job.loader), None)
    assert {k: x.shape for k, x in batch.items()} == {k: x.shape for k, x in job.example_batch().items()}
    batch, weight = job.build_objective().weigh(batch, {})
    values = {}
    for share in (0.25, 1.0):
      cfg = dataclasses.replace(job.cfg.distil, weight=share)
      objective = distillation.distillation_objective(cfg, job.build_objective())
      values[share], metrics = jax.jit(lambda x, o=objective: o.loss(job.teacher, None, x, weight, {}, None))(
        batch
      )
  assert abs(metrics['kl']) < 1e-3 and abs(values[1.0]) < 1e-3
  assert float(values[0.25]) == pytest.approx(0.75 * float(metrics['loss']), rel=1e-3)


@pytest.mark.parametrize(
  'changes, distil, cause',
  [
    ((), {'teacher': ''}, "distil.teacher=''"),
    ((), {'teacher': '/nowhere'}, '/nowhere'),
    ((), {'teacher': '{}@999'}, 'has no such checkpoint'),
    ({'steps_per_call': 2}, {}, 'train.steps_per_call=2'),
    ({'probe_every': 2}, {}, 'train.probe_every=2'),
  ],
)
def test_what_a_teacher_cannot_do_is_an_error(finished, tmp_path, changes, distil, cause):
  distil = {'teacher': '{}'} | distil
  distil['teacher'] = distil['teacher'].format(finished[0])
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    build(student(changes=changes, **distil), tmp_path)
  assert_two_lines(error.value, cause)


def test_stages_change_the_shares_of_sources(finished, tmp_path):
  cfg = student(finished[0])
  both = dict.fromkeys(('a', 'text'), cfg.data.mixture['text'])
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, mixture=both, stages='4: a=1, text=3'))
  job = build(cfg, tmp_path)
  assert [job.loader.rows_before(n) for n in (4, 8)] == [{'a': 32, 'text': 32}, {'a': 48, 'text': 80}]


def test_a_teacher_with_other_ids_is_an_error(finished, tmp_path, monkeypatch):
  other = SimpleNamespace(load=lambda folder: SimpleNamespace(hash='0123'))
  monkeypatch.setattr(distillation, 'Tokenizers', other)
  with pytest.raises(ValueError) as error:
    build(student(finished[0]), tmp_path)
  assert_two_lines(error.value, 'has other ids', '0123')
