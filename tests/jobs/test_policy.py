"""Training on rewards: advantages, the loss, resuming, and a run whose reward rises."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from scipy import stats

from gpt_jax import config, train
from gpt_jax.cluster.batches import to_devices
from gpt_jax.evaluation import trained
from gpt_jax.jobs import policy, rewards
from gpt_jax.jobs.rewards import GrpoConfig
from gpt_jax.model.adapters import AdapterConfig
from gpt_jax.runs import records
from gpt_jax.sampling import prompt_batch
from gpt_jax.training import start
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


def test_advantages_equal_numpy():
  rewards_PG = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]], np.float32)
  mean_PG = rewards.ADVANTAGES['mean'](rewards_PG)
  np.testing.assert_allclose(mean_PG, [[0.5, -0.5, -0.5, 0.5], [0] * 4, [1.5, -0.5, -0.5, -0.5]])
  np.testing.assert_allclose(
    rewards.ADVANTAGES['std'](rewards_PG), mean_PG / np.array([[0.5001], [1], [np.sqrt(0.75) + 1e-4]]), 1e-6
  )


@pytest.mark.parametrize('normalize', rewards.NORMALIZERS)
def test_loss_and_gradient_equal_numpy(normalize):
  rng = np.random.default_rng(0)
  log_probs_BT, reference_BT = -rng.random((2, 2, 4))
  mask_BT = np.array([[0, 1, 1, 1], [0, 1, 0, 0]], np.float32)
  advantage_B = np.array([1.5, -0.5])
  batch = {'loss_mask_BT': mask_BT, 'advantage_B': advantage_B, 'reference_BT': reference_BT}
  batch |= {f'{name}_B': np.zeros(2) for name in ('reward', 'reward_spread', 'right')}
  cfg = GrpoConfig(normalize=normalize, kl=0.3, max_new_tokens=5)
  values = lambda log_probs_BT: policy.policy_values(cfg, batch, log_probs_BT)
  delta_BT = reference_BT - log_probs_BT
  kl_BT = np.exp(delta_BT) - delta_BT - 1
  assert (kl_BT >= 0).all()
  divisor_B = np.array([3, 1]) if normalize == 'sequence' else np.array([5, 5])
  token_BT = (-advantage_B[:, None] + 0.3 * kl_BT) * mask_BT
  np.testing.assert_allclose(values(log_probs_BT)['loss'], token_BT.sum(1) / divisor_B, rtol=1e-5)
  gradient_BT = jax.grad(lambda x_BT: values(x_BT)['loss'].sum())(log_probs_BT)
  expected_BT = (-advantage_B[:, None] + 0.3 * (1 - np.exp(delta_BT))) * mask_BT / divisor_B[:, None]
  np.testing.assert_allclose(gradient_BT, expected_BT, rtol=1e-5)


def test_rewards_of_a_completion():
  cfg = GrpoConfig(reward='format', pattern=r'\d+')
  reward = lambda name, *texts: rewards.REWARDS[name](cfg, '5+7', *texts)
  assert [reward('exact', ' 12\n', '12'), reward('exact', '12', '13')] == [1, 0]
  assert [reward('format', '12', '7'), reward('format', '12a', '7')] == [1, 0]
  assert [reward('length', '12', '7'), reward('length', '3', '7')] == [-1, 0]


@pytest.mark.parametrize(
  'fields, cause',
  [
    ({'reward': 'rewards.py'}, "grpo.reward='rewards.py'"),
    ({'group': 1}, 'grpo.group=1'),
    ({'temperature': 0.0}, 'grpo.temperature=0.0'),
    ({'kl': -1.0}, 'grpo.kl=-1.0'),
    ({'updates': 0}, 'grpo.updates=0'),
    ({'ratio': 'ppo'}, "grpo.ratio='ppo'"),
    ({'clip_low': 1.5}, 'grpo.clip_low=1.5'),
    ({'clip_high': -0.1}, 'grpo.clip_high=-0.1'),
    ({'reward': 'format'}, 'grpo.reward=format'),
    ({'reward': 'format', 'pattern': '('}, 'not a regular expression'),
  ],
)
def test_wrong_settings_are_errors(fields, cause):
  with pytest.raises(ValueError) as error:
    GrpoConfig(**fields)
  assert_two_lines(error.value, cause)


@pytest.mark.parametrize('ratio', rewards.RATIOS)
def test_clipped_loss_and_gradient_equal_numpy(ratio):
  """Completions that leave both bounds, with advantages of both signs; gradient by differences."""
  rng = np.random.default_rng(1)
  log_probs_BT, mask_BT = -rng.random((6, 5)), np.ones((6, 5))
  mask_BT[:3, 3:] = mask_BT[:, 0] = 0
  sampled_BT = log_probs_BT + np.linspace(-0.6, 0.6, 6)[:, None] + 0.1 * rng.normal(size=(6, 5))
  advantage_B = np.array([1.0, -1, 2, -2, 1, -1])
  cfg = GrpoConfig(updates=2, ratio=ratio, clip_low=0.2, clip_high=0.3)

  def expected(log_probs_BT):
    log_ratio_BT = log_probs_BT - sampled_BT
    if ratio == 'sequence':
      log_ratio_BT = ((log_ratio_BT * mask_BT).sum(1) / mask_BT.sum(1))[:, None] * np.ones((1, 5))
    ratio_BT, gain_BT = np.exp(log_ratio_BT), advantage_B[:, None] * np.ones((1, 5))
    is_clipped_BT = np.where(gain_BT > 0, ratio_BT > 1.3, ratio_BT < 0.8)
    bounded_BT = np.where(gain_BT > 0, np.minimum(ratio_BT, 1.3), np.maximum(ratio_BT, 0.8))
    tokens_B = mask_BT.sum(1)
    return -(bounded_BT * gain_BT * mask_BT).sum(1) / tokens_B, (is_clipped_BT * mask_BT).sum(1) / tokens_B

  batch = {'loss_mask_BT': mask_BT, 'advantage_B': advantage_B, 'sampled_BT': sampled_BT}
  batch |= {f'{name}_B': np.zeros(6) for name in ('reward', 'reward_spread', 'right')}
  with jax.enable_x64(True):
    values = lambda log_probs_BT: policy.policy_values(cfg, batch, log_probs_BT)
    loss_B, clipped_B = expected(log_probs_BT)
    np.testing.assert_allclose(values(log_probs_BT)['loss'], loss_B, rtol=1e-9)
    np.testing.assert_allclose(values(log_probs_BT)['clipped_tokens'], clipped_B)
    assert 0 < clipped_B.mean() < 1
    gradient_BT = jax.grad(lambda x_BT: values(x_BT)['loss'].sum())(log_probs_BT)
  steps = 1e-6 * np.eye(30).reshape(30, 6, 5)
  slope_N = [(expected(log_probs_BT + d)[0] - expected(log_probs_BT - d)[0]).sum() / 2e-6 for d in steps]
  np.testing.assert_allclose(gradient_BT.ravel(), slope_N, atol=1e-6)


def test_a_branch_shares_completions_of_its_own_shape_alone():
  arrays = {'token_ids_BT': np.arange(6).reshape(2, 3), 'advantage_B': np.float32([0.5, -0.5])}
  extra = {'completions': {'step': 4, 'arrays': policy.pack(arrays)}}
  make = lambda rows, **grpo: types.SimpleNamespace(
    grpo=GrpoConfig(**grpo), train=types.SimpleNamespace(batch_size=rows)
  )
  step, same = policy.saved_completions(make(2, updates=3), 3, extra)
  assert step == 4 and all((same[name] == x).all() for name, x in arrays.items())
  for cfg, length in (
    (make(4, updates=3), 3),
    (make(2, updates=3), 5),
    (make(2), 3),
    (make(2, updates=3, kl=0.1), 3),
  ):
    assert policy.saved_completions(cfg, length, extra) is None
  assert policy.saved_completions(make(2, updates=3), 3, {}) is None


# ------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
  """Forty questions."""
  path = tmp_path_factory.mktemp('questions') / 'questions.jsonl'
  lines = [{'question': f'say {n:02d}', 'answer': 'abcdefg'[n % 7]} for n in range(40)]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return {'questions': {'kind': 'jsonl', 'path': str(path), 'template': '{question} -> {answer}'}}


def policy_config(base, mixture, steps=10, changes=(), **grpo):
  fields = {'data__mixture': mixture, 'data': {'packing': 'first_fit'}, 'tokenizer': {'kind': 'bytes'}}
  small = {'job': 'grpo', 'init_from': str(base), 'steps': steps, 'batch_size': 32, 'eval_every': 5}
  grpo = {'max_new_tokens': 3, 'kl': 0.01} | grpo
  return tiny_runs.experiment(
    **fields,
    grpo=grpo,
    optim=tiny_runs.TINY['optim'] | {'ema': 0.0, 'warmup': 0, 'eps': 1e-6},
    train=tiny_runs.TINY['train'] | small | dict(changes),
  )


SCORE = """
def score(question, completion, answer):
  return any('a' <= letter <= 'z' for letter in completion)
"""


@pytest.fixture(scope='module')
def reward_file(tmp_path_factory):
  """A reward of a user: some of the completions get it by chance."""
  path = tmp_path_factory.mktemp('rewards') / 'letters.py'
  path.write_text(SCORE)
  return path


@pytest.fixture(scope='module')
def finished(tmp_path_factory, mixture, reward_file):
  """(base, run folder, result) of a run on rewards."""
  base = tiny_runs.finished(tmp_path_factory)
  workdir = tmp_path_factory.mktemp('grpo') / 'run'
  return base, workdir, train.train(policy_config(base, mixture, reward=f'{reward_file}:score'), workdir)


def test_reward_rises_and_held_out_prompts_are_answered(finished):
  _, workdir, result = finished
  lines = [line for line in records.read_lines(workdir / 'metrics.jsonl') if 'reward' in line]
  assert lines[0]['kl'] == pytest.approx(0, abs=1e-5)  # the policy is its reference
  assert 0 < lines[0]['reward'] < 0.9 and lines[0]['reward_spread'] > 0
  assert np.mean([line['reward'] for line in lines[-3:]]) > lines[0]['reward'] + 0.1
  [row] = result['evaluations']
  assert row['task'] == 'grpo' and row['metric'] == 'accuracy' and row['n'] == 4
  assert row['interval'][0] <= row['value'] <= row['interval'][1]


def test_resumed_equals_uninterrupted_though_the_reward_file_is_another(
  finished, mixture, reward_file, tmp_path, caplog
):
  base, workdir, result = finished
  cfg = policy_config(base, mixture, reward=f'{reward_file}:score')
  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(5)) is None
  reward_file.write_text('def score(question, completion, answer):\n  return 0\n')
  assert train.train(cfg, tmp_path / 'run')['loss'] == result['loss']
  assert f'{reward_file} has changed since this run began' in caplog.text
  reward_file.write_text(SCORE)
  both = [trained.load(folder).model for folder in (workdir, tmp_path / 'run')]
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), *both)))


def test_steps_that_share_completions_resume_in_their_midst(finished, mixture, reward_file, tmp_path):
  """Stopped after the second of three steps: the third has the completions of the first, bit for bit."""
  cfg = policy_config(finished[0], mixture, steps=6, reward=f'{reward_file}:score', updates=3, kl=0.0)
  whole = train.train(cfg, tmp_path / 'whole')
  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(5)) is None
  assert train.train(cfg, tmp_path / 'run')['loss'] == whole['loss']
  lines = [line for line in records.read_lines(tmp_path / 'run' / 'metrics.jsonl') if 'reward' in line]
  shared = [[line['reward'] for line in lines[first : first + 3]] for first in (0, 3)]
  assert [len({*values}) for values in shared] == [1, 1]
  is_first = [abs(line['loss']) < 1e-6 for line in lines]  # the policy is the one that sampled
  assert (
    is_first == [True, False, False] * 2 and lines[0]['clipped_tokens'] == lines[3]['clipped_tokens'] == 0
  )


def test_adapters_compare_with_their_base_without_a_copy_of_it(finished, mixture, tmp_path):
  adapted, whole = (policy_config(finished[0], mixture, steps=2, kl=0.1) for _ in range(2))
  adapted = dataclasses.replace(adapted, adapter=AdapterConfig(rank=2))
  batches = []
  for name, cfg in (('adapted', adapted), ('whole', whole)):
    mesh = train.make_mesh(config.MeshConfig())
    with jax.set_mesh(mesh):
      job = policy.PolicyJob(cfg, tmp_path / name, mesh)
      state = job.load_initial_weights(job.program.init(), *start.open_parent('', finished[0])[:2])
      batches.append(job.prepare_batch(to_devices(next(job.loader), mesh), state))
      assert (job.reference_model is None) == (name == 'adapted')
  np.testing.assert_allclose(batches[0]['reference_BT'], batches[1]['reference_BT'], rtol=1e-5, atol=1e-5)


def test_a_row_has_the_completion_as_targets_and_nothing_else(finished, mixture, tmp_path):
  base, _, _ = finished
  job = policy.PolicyJob(policy_config(base, mixture), tmp_path, train.make_mesh(config.MeshConfig()))
  batch = job.rows([[1, 2, 3], [4]], [[5, 6], [7]])
  pair = batch['target_ids_BT'], batch['loss_mask_BT']
  targets = [ids[mask > 0].tolist() for ids, mask in zip(*pair, strict=True)]
  assert targets == [[5, 6], [7]]
  numbers_B = next(job.loader)['prompt_B']
  assert (numbers_B.reshape(4, 8) == numbers_B[::8, None]).all()  # a group of each prompt


def test_the_policy_that_learns_is_the_one_that_samples(finished, mixture, tmp_path):
  """Its probabilities of the ids add up to 1, and 4,000 samples have them (chi-squared test)."""
  base, workdir, _ = finished
  job = policy.PolicyJob(policy_config(base, mixture), tmp_path, train.make_mesh(config.MeshConfig()))
  run = trained.load(workdir)
  ids = np.flatnonzero(job.allowed_V).tolist()
  special = job.tokenizers.vocabulary.special
  assert special('eos') in ids and special('pad') not in ids and len(ids) == 257
  batch = job.rows([[1, 2, 3]] * len(ids), [[i] for i in ids])
  log_probs_BT = policy.log_probs(run.model, batch, job.allowed_V, temperature=2.0)
  probabilities_V = np.exp(log_probs_BT[batch['loss_mask_BT'] > 0])
  assert probabilities_V.sum() == pytest.approx(1, rel=1e-5)
  job.cfg = dataclasses.replace(job.cfg, grpo=dataclasses.replace(job.cfg.grpo, max_new_tokens=1))
  task = policy.Task('', prompt_batch.Prompt([1, 2, 3]), '')
  keys_B = policy.rollout_keys(jax.random.key(0), 0, 4000)
  [group] = job.complete(run.model, [task], 2.0, 4000, keys_B)
  counts_V = np.array([sum(sampled == [i] for sampled in group) for i in ids])
  is_common = probabilities_V > 5 / 4000  # else the test is not exact
  fold = lambda x_V: [*x_V[is_common], *([x_V[~is_common].sum()] if (~is_common).any() else [])]
  assert is_common.sum() > 20
  expected_V = np.float64(probabilities_V) / np.float64(probabilities_V).sum() * 4000
  assert stats.chisquare(fold(counts_V), fold(expected_V)).pvalue > 1e-3


def test_the_policy_samples_with_the_mask_that_it_learns_with(finished, mixture, tmp_path):
  """data.prefix: greedy completions are the likeliest ids after prompts that are read both ways."""
  cfg = policy_config(finished[0], mixture, max_new_tokens=1)
  two_layers = dataclasses.replace(cfg.model, layers=2)  # in one, the mask of a prompt shows in no answer
  cfg = dataclasses.replace(cfg, model=two_layers, data=dataclasses.replace(cfg.data, prefix=True))
  job = policy.PolicyJob(cfg, tmp_path, train.make_mesh(config.MeshConfig()))
  model, tasks, ids = models.fill(job.model_cfg), job.tasks['train'][:8], np.flatnonzero(job.allowed_V)
  batches = [job.rows([task.prompt.ids] * len(ids), [[i] for i in ids]) for task in tasks]
  log_probs = [policy.log_probs(model, batch, job.allowed_V, temperature=1.0) for batch in batches]
  likeliest = [
    ids[np.asarray(x_BT)[batch['loss_mask_BT'] > 0].argmax()]
    for x_BT, batch in zip(log_probs, batches, strict=True)
  ]
  greedy = lambda tasks: [new[0] for [new] in job.complete(model, tasks, 0.0, 1)]
  assert greedy(tasks) == likeliest
  causal = [task._replace(prompt=task.prompt._replace(mask='causal')) for task in tasks]
  assert greedy(causal) != likeliest  # else this test could not fail


@pytest.mark.parametrize(
  'base, changes, cause',
  [
    (False, {}, 'train.job=grpo'),
    (True, {'changes': {'batch_size': 12}}, 'grpo.group=8'),
    (True, {'changes': {'probe_every': 2}}, 'train.probe_every=2'),
    (True, {'changes': {'steps_per_call': 2, 'eval_every': 0}}, 'train.steps_per_call=2'),
    (True, {'max_new_tokens': 100}, 'grpo.max_new_tokens=100'),
    (True, {'weight': 2.0}, 'data.mixture.questions.weight=2.0'),
  ],
)
def test_what_cannot_be_trained_is_an_error(base, changes, cause, finished, mixture, tmp_path):
  fields = {name: changes[name] for name in changes.keys() & {'weight'}}
  mixture = {name: source | fields for name, source in mixture.items()}
  changes = {name: value for name, value in changes.items() if name not in fields}
  cfg = policy_config(finished[0] if base else '', mixture, **changes)
  with pytest.raises(ValueError) as error:
    policy.PolicyJob(cfg, tmp_path, train.make_mesh(config.MeshConfig()))
  assert_two_lines(error.value, cause)
