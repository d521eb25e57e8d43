"""Training on preferences: the losses, the rows of pairs, the reference, and a run."""

import collections
import dataclasses
import json
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from gpt_jax import config, sharding, train
from gpt_jax.ablation import budget, proof
from gpt_jax.data import content, templates
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface
from gpt_jax.jobs import language_model, preference_pairs, preferences
from gpt_jax.jobs.base import trains_gpt
from gpt_jax.jobs.preference_losses import PREFERENCE_LOSSES, PairScores, PreferenceConfig
from gpt_jax.model.config import ModelConfig
from gpt_jax.runs import digests, records
from gpt_jax.training import checkpoint
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines

SCORES = PairScores(
  *(np.float32(x) for x in ([-9, -4, -6], [-7, -8, -6.5], [3, 2, 4], [2, 4, 5], [-8, -6, -6], [-8, -6, -7])),
  *(np.float32(x) for x in ([-5, -9, -4], [-6, -9.5, -5])),
)


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


def smoothed(cfg, margin):
  p = cfg.label_smoothing
  return -(1 - p) * log_sigmoid(margin) - p * log_sigmoid(-margin)


def expected_dpo(cfg, x):
  margin = (x.chosen_B - x.reference_chosen_B) - (x.rejected_B - x.reference_rejected_B)
  return smoothed(cfg, cfg.beta * margin)


def expected_ipo(cfg, x):
  chosen = (x.chosen_B - x.reference_chosen_B) / x.chosen_tokens_B
  rejected = (x.rejected_B - x.reference_rejected_B) / x.rejected_tokens_B
  return (chosen - rejected - 1 / (2 * cfg.beta)) ** 2


def expected_orpo(cfg, x):
  p, q = np.exp(x.chosen_B / x.chosen_tokens_B), np.exp(x.rejected_B / x.rejected_tokens_B)
  return -np.log(p) - cfg.beta * log_sigmoid(np.log(p / (1 - p)) - np.log(q / (1 - q)))


def expected_simpo(cfg, x):
  margin = x.chosen_B / x.chosen_tokens_B - x.rejected_B / x.rejected_tokens_B
  return smoothed(cfg, cfg.beta * margin - cfg.gamma)


def expected_kto(cfg, x):
  kl, sigmoid = max(0, (x.mismatched_B - x.reference_mismatched_B).mean()), lambda z: 1 / (1 + np.exp(-z))
  chosen, rejected = x.chosen_B - x.reference_chosen_B, x.rejected_B - x.reference_rejected_B
  desirable = cfg.desirable_weight * (1 - sigmoid(cfg.beta * (chosen - kl)))
  return (desirable + cfg.undesirable_weight * (1 - sigmoid(cfg.beta * (kl - rejected)))) / 2


SETTINGS = {'label_smoothing': 0.1, 'gamma': 0.4, 'desirable_weight': 1.5, 'undesirable_weight': 0.75}


@pytest.mark.parametrize('name', PREFERENCE_LOSSES)
def test_losses_equal_their_formulas(name):
  cfg = PreferenceConfig(name, 0.3, **{key: SETTINGS[key] for key in PREFERENCE_LOSSES[name].uses})
  loss_B, chosen_B, rejected_B = PREFERENCE_LOSSES[name].compute(cfg, SCORES)
  np.testing.assert_allclose(loss_B, globals()[f'expected_{name}'](cfg, SCORES), rtol=1e-5)
  assert chosen_B.shape == rejected_B.shape == (3,)


def test_a_kl_below_zero_is_none():
  cfg, low = PreferenceConfig('kto'), SCORES._replace(mismatched_B=SCORES.mismatched_B - 9)
  at_zero = SCORES._replace(mismatched_B=SCORES.reference_mismatched_B)
  np.testing.assert_array_equal(*(PREFERENCE_LOSSES['kto'].compute(cfg, x)[0] for x in (low, at_zero)))


@pytest.mark.slow
def test_kto_equals_trl():
  """By trl's own method, on a model that returns these log-probabilities."""
  torch, trl = pytest.importorskip('torch'), pytest.importorskip('trl')
  cfg, x = PreferenceConfig('kto', 0.3, desirable_weight=1.5, undesirable_weight=0.75), SCORES
  tensor = lambda *parts: torch.tensor(np.concatenate(parts))
  sums, kl_sums = tensor(x.chosen_B, x.rejected_B), tensor(x.mismatched_B, x.mismatched_B)

  def model(input_ids, **_):
    log_probs = torch.stack([torch.zeros(6), kl_sums if input_ids.sum() else sums], 1)
    return types.SimpleNamespace(
      log_probs=log_probs, entropy=torch.zeros(6, 2), mean_logits=torch.zeros(6, 2), loss=None
    )

  accelerator = types.SimpleNamespace(device='cpu', gather_for_metrics=lambda value: value)
  stand_in = types.SimpleNamespace(
    model=types.SimpleNamespace(training=False),
    accelerator=accelerator,
    calculate_KL=True,
    precompute_ref_logps=True,
    aux_loss_enabled=False,
    loss_type='kto',
    beta=cfg.beta,
    desirable_weight=cfg.desirable_weight,
    undesirable_weight=cfg.undesirable_weight,
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
  )
  method = trl.KTOTrainer._compute_kl_logps
  stand_in._compute_kl_logps = lambda *args: method(stand_in, *args)
  places = torch.ones(6, 3, dtype=torch.long)
  batch = {'input_ids': places * 0, 'attention_mask': places, 'completion_mask': places}
  batch |= {'KL_input_ids': places, 'KL_attention_mask': places, 'KL_completion_mask': places}
  batch |= {'label': torch.tensor([True] * 3 + [False] * 3)}
  batch |= {'ref_logps': tensor(x.reference_chosen_B, x.reference_rejected_B)}
  batch |= {'ref_KL_logps': tensor(x.reference_mismatched_B, x.reference_mismatched_B)}
  expected = trl.KTOTrainer._compute_loss(stand_in, model, batch, False)
  loss_B = PREFERENCE_LOSSES['kto'].compute(cfg, x)[0]
  assert float(loss_B.mean()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
  'fields, cause',
  [
    ({'loss': 'ppo'}, "preference.loss='ppo'"),
    ({'beta': 0.0}, 'preference.beta=0.0'),
    ({'loss': 'ipo', 'label_smoothing': 0.1}, 'not defined'),
    ({'loss': 'kto', 'undesirable_weight': 0.0}, 'preference.undesirable_weight=0.0'),
    ({'label_smoothing': 0.5}, 'not in [0, 0.5)'),
  ],
)
def test_wrong_settings_are_errors(fields, cause):
  with pytest.raises(ValueError) as error:
    PreferenceConfig(**fields)
  assert_two_lines(error.value, cause)


# ------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
  """Forty pairs: digits are preferred to letters."""
  path = tmp_path_factory.mktemp('pairs') / 'pairs.jsonl'
  pair = lambda n: {'prompt': f'say {n:02d}', 'chosen': f'{n % 10}' * 3, 'rejected': 'abcdefg'[n % 7] * 2}
  path.write_text(''.join(json.dumps(pair(n)) + '\n' for n in range(40)))
  return {'pairs': {'kind': 'jsonl', 'path': str(path), 'template': '{prompt} -> {chosen}'}}


def pairs_config(base, mixture, steps=8, **changes):
  fields = {'data__mixture': mixture, 'data': {'packing': 'first_fit'}, 'tokenizer': {'kind': 'bytes'}}
  optim = {'ema': 0.0, 'warmup': 0}
  small = {'job': 'dpo', 'init_from': str(base), 'steps': steps, 'batch_size': 8, 'eval_every': 4}
  return tiny_runs.experiment(
    **fields, optim=tiny_runs.TINY['optim'] | optim, train=tiny_runs.TINY['train'] | small, **changes
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory, mixture):
  """(base, run folder, result) of a run on pairs."""
  base = tiny_runs.finished(tmp_path_factory)
  workdir = tmp_path_factory.mktemp('dpo') / 'run'
  return base, workdir, train.train(pairs_config(base, mixture), workdir)


def test_margins_rise_and_held_out_pairs_are_scored(finished):
  _, workdir, result = finished
  lines = [line for line in records.read_lines(workdir / 'metrics.jsonl') if 'reward_margin' in line]
  assert lines[0]['loss'] == pytest.approx(np.log(2), rel=1e-3)  # the policy is its reference
  assert lines[0]['reward_margin'] == pytest.approx(0, abs=1e-4)
  assert lines[-1]['reward_margin'] > 0.5 and lines[-1]['loss'] < 0.5
  assert result['valid_reward_accuracy'] == 1.0
  [row] = [row for row in result['evaluations'] if row['metric'] == 'reward_margin']
  assert row['interval'][0] <= row['value'] <= row['interval'][1] and row['n'] == 4


def test_the_report_shows_accuracy_first_and_names_no_nats_per_token(finished):
  text = (finished[1] / 'report.html').read_text()
  assert 'Ranks 100.0% of held-out pairs right after 8 steps' in text
  assert 'validation loss, per pair' in text
  assert 'per token' not in text and 'bits' not in text


def test_the_result_is_a_model_that_samples(finished):
  _, workdir, _ = finished
  assert trained.load(workdir).generate(['say'], max_new_tokens=2)


def test_resumed_equals_uninterrupted_with_the_stored_reference(finished, mixture, tmp_path, monkeypatch):
  base, workdir, result = finished
  cfg = pairs_config(base, mixture)
  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(5)) is None
  refuse = lambda *args: pytest.fail('the reference is computed again')
  monkeypatch.setattr(preferences.PreferenceJob, 'reference_log_probs', refuse)
  assert train.train(cfg, tmp_path / 'run')['loss'] == result['loss']
  both = [trained.load(folder).model for folder in (workdir, tmp_path / 'run')]
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), *both)))


def test_dpo_and_its_gradient_equal_torch(finished, mixture, tmp_path):
  """At the log-probabilities of a model's answers, by the formula of trl's DPOTrainer."""
  torch = pytest.importorskip('torch')
  base, workdir, _ = finished
  job = preferences.PreferenceJob(pairs_config(base, mixture), tmp_path, train.make_mesh(config.MeshConfig()))
  batch = next(job.loader)
  model = trained.load(workdir).model
  scores, _ = jax.jit(lambda batch: preferences.pair_scores(model, batch, {}, None))(batch)
  cfg = PreferenceConfig()
  ours = lambda c, r: (
    PREFERENCE_LOSSES['dpo'].compute(cfg, scores._replace(chosen_B=c, rejected_B=r))[0].mean()
  )
  loss, grads = jax.value_and_grad(ours, (0, 1))(scores.chosen_B, scores.rejected_B)
  chosen, rejected = (torch.tensor(np.array(x), requires_grad=True) for x in scores[:2])
  delta = chosen - rejected - torch.tensor(batch['reference_chosen_B'] - batch['reference_rejected_B'])
  expected = -torch.nn.functional.logsigmoid(cfg.beta * delta).mean()
  expected.backward()
  assert float(loss) == pytest.approx(expected.item(), rel=1e-4)
  for gradient, x in zip(grads, (chosen, rejected), strict=True):
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4)


@pytest.mark.slow
def test_gradients_of_a_whole_step_equal_trl_in_torch(finished, mixture, tmp_path):
  """All parameters of an exported GPT-2; the gradients come back as a model that is imported."""
  torch, hf = pytest.importorskip('torch'), pytest.importorskip('transformers')
  job = new_job(pairs_config(finished[0], mixture), tmp_path)
  pairs = job.pairs['train']
  pairs.reference_NA[:] = np.random.default_rng(0).normal(-20, 2, pairs.reference_NA.shape)
  batch, cfg = pairs.gather(range(8)), PreferenceConfig(beta=0.3)
  gpt2 = dict(norm='layernorm', norm_bias=True, positions='learned', mlp='gelu', tied_head=True)
  gpt2 |= dict(attention_bias=True, mlp_bias=True, layers=2, width=24, heads=4, hidden=96)
  model_cfg = ModelConfig(vocab=job.model_cfg.vocab, context=job.length, dtype='float32', **gpt2).resolved()
  model = models.fill(model_cfg)
  huggingface.export_model(model_cfg, model, None, tmp_path / 'gpt2', family='gpt2')

  objective = preferences.preference_objective(cfg)
  weight = objective.weigh(batch, {})[1]
  compute = jax.jit(jax.value_and_grad(lambda m: objective.loss(m, None, batch, weight, {}, None)[0]))
  loss, grads = compute(model)

  theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / 'gpt2', attn_implementation='eager').float()
  theirs.eval()
  rows = {name: torch.tensor(x.reshape(16, -1)) for name, x in batch.items() if name.endswith('_BT')}
  log_probs = theirs(rows['token_ids_BT'].long()).logits.log_softmax(-1)
  chosen = torch.gather(log_probs, 2, rows['target_ids_BT'].long()[..., None])[..., 0]
  sums = (chosen * rows['loss_mask_BT']).sum(1).reshape(8, 2)
  reference = torch.tensor(pairs.reference_NA[:8])
  delta = (sums[:, 0] - reference[:, 0]) - (sums[:, 1] - reference[:, 1])
  expected = -torch.nn.functional.logsigmoid(cfg.beta * delta).mean()
  expected.backward()
  assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
  for p in theirs.parameters():
    p.data = p.grad
  theirs.save_pretrained(tmp_path / 'gradients')
  expected_grads = models.params(huggingface.import_model(tmp_path / 'gradients')[1])
  for path, gradient in models.params(grads).items():
    scale = np.abs(expected_grads[path]).max()
    if path.endswith('k_bias_GK'):  # 0 but for rounding: it moves all scores of a query alike
      assert max(scale, np.abs(gradient).max()) < 1e-6
      continue
    np.testing.assert_allclose(gradient, expected_grads[path], rtol=1e-4, atol=1e-4 * scale, err_msg=path)
    assert scale > 0, path


@pytest.mark.slow
def test_kto_raises_the_margin(finished, mixture, tmp_path):
  result = train.train(pairs_config(finished[0], mixture, preference={'loss': 'kto'}), tmp_path)
  lines = [line for line in records.read_lines(tmp_path / 'metrics.jsonl') if 'reward_margin' in line]
  assert lines[0]['loss'] == pytest.approx(0.5, abs=1e-5)  # the policy is its reference
  assert lines[-1]['reward_margin'] > 0.3 and result['valid_reward_accuracy'] == 1.0


@pytest.mark.slow
def test_adapters_train_against_their_frozen_base(finished, mixture, tmp_path):
  base, workdir, _ = finished
  before = tiny_runs.snapshot(base)
  train.train(pairs_config(base, mixture, adapter={'rank': 2}), tmp_path)
  assert tiny_runs.snapshot(base) == before
  stored = [path for path in tiny_runs.arrays(tmp_path) if path.startswith('model/')]
  assert stored and all(path.endswith(('/a', '/b')) for path in stored)
  lines = [line for line in records.read_lines(tmp_path / 'metrics.jsonl') if 'reward_margin' in line]
  assert lines[0]['loss'] == pytest.approx(np.log(2), rel=1e-3) and lines[-1]['reward_margin'] > 0.01
  [path] = (tmp_path / 'cache').glob('reference-train-*.npy')  # of the base, as without adapters
  np.testing.assert_allclose(np.load(path), np.load(workdir / 'cache' / path.name), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{'accumulate': 2}, {'data': 2}], ids=['micro-batches', 'devices'])
def test_the_division_of_a_batch_changes_nothing(finished, mixture, tmp_path, monkeypatch, changes):
  base, workdir, _ = finished
  cfg = pairs_config(base, mixture)
  section = 'mesh' if 'data' in changes else 'train'
  cfg = dataclasses.replace(cfg, **{section: dataclasses.replace(getattr(cfg, section), **changes)})
  if section == 'mesh':
    monkeypatch.setattr(train, 'make_mesh', lambda mesh: sharding.make_mesh(mesh, jax.devices()[:2]))
  train.train(cfg, tmp_path)
  keys = ('loss', 'reward_margin', 'log_prob_chosen', 'grad_norm')
  curves = [
    [[line[key] for key in keys] for line in records.read_lines(folder / 'metrics.jsonl') if 'loss' in line]
    for folder in (workdir, tmp_path)
  ]
  np.testing.assert_allclose(*curves, rtol=1e-5, atol=1e-5)


def test_a_row_has_the_answers_as_targets_and_nothing_else(finished, mixture, tmp_path):
  base, _, _ = finished
  job = preferences.PreferenceJob(pairs_config(base, mixture), tmp_path, train.make_mesh(config.MeshConfig()))
  pairs = job.pairs['train']
  batch = pairs.gather([3])
  half = job.length
  for side, documents in zip((slice(0, half), slice(half, 2 * half)), pairs.sides, strict=True):
    targets = batch['target_ids_BT'][0, side][batch['loss_mask_BT'][0, side] > 0]
    ids = documents[3].ids
    sep = job.tokenizers.vocabulary.special('sep')
    assert targets.tolist() == ids[list(ids).index(sep) + 1 :].tolist()
  first, second = (job.tokenizers.decode_text(d[3].ids[-4:-1]) for d in pairs.sides)
  assert first.isdigit() and not second.isdigit()


def test_mismatched_answers_are_those_of_the_next_pair(finished, mixture, tmp_path):
  base, _, _ = finished
  job = new_job(pairs_config(base, mixture, preference={'loss': 'kto'}), tmp_path)
  pairs, half = job.pairs['train'], job.length
  chosen, rejected, mismatched = ([job.tokenizers.decode_text(e.ids) for e in side] for side in pairs.sides)
  assert [text[:6] for text in mismatched] == [text[:6] for text in chosen]
  answers = [(rejected if n % 2 else chosen)[(n + 1) % len(chosen)][6:] for n in range(len(chosen))]
  assert [text[6:] for text in mismatched] == answers
  batch = pairs.gather([3, 4])
  targets = batch['target_ids_BT'][0, 2 * half :][batch['loss_mask_BT'][0, 2 * half :] > 0]
  assert targets.tolist() == pairs.sides[2][3].ids[-len(targets) :].tolist()
  assert {name: x.shape for name, x in batch.items() if name.startswith('reference')} == dict.fromkeys(
    preference_pairs.REFERENCE, (2,)
  )
  tokens = batch['token_ids_BT'].shape[1] * job.cfg.train.batch_size
  assert budget.tokens_per_step(job.cfg) == tokens == 3 * half * 8
  assert f'24 x {half} tokens a step' in job.describe()
  with pytest.raises(ValueError) as error:
    new_job(dataclasses.replace(job.cfg, train=dataclasses.replace(job.cfg.train, accumulate=2)), tmp_path)
  assert_two_lines(error.value, 'train.accumulate=2')


def test_shares_and_copies_of_sources_are_refused(finished, mixture, tmp_path):
  both = mixture | {'more': mixture['pairs']}
  changed = {'template': '{picture:image}{prompt} -> {chosen}', 'copies': 1, 'augment': 'shift=0.1'}
  weighted = {'pairs': mixture['pairs'] | {'weight': 2.0}}
  for cfg, cause in (
    (pairs_config(finished[0], both, data__stages='4: more=1'), 'data.stages=4: more=1'),
    (pairs_config(finished[0], weighted), 'data.mixture.pairs.weight=2.0'),
    (pairs_config(finished[0], {'pairs': mixture['pairs'] | changed}), 'data.mixture.pairs.copies=1'),
  ):
    with pytest.raises(ValueError) as error:
      new_job(cfg, tmp_path)
    assert_two_lines(error.value, cause)


def test_prompts_of_validation_are_not_trained_on(finished, tmp_path, caplog):
  path = tmp_path / 'pairs.jsonl'
  pair = lambda n: {'prompt': f'say {n // 4:02d}', 'chosen': f'{n}', 'rejected': 'no'}
  path.write_text(''.join(json.dumps(pair(n)) + '\n' for n in range(80)))
  source = {'kind': 'jsonl', 'path': str(path), 'template': '{prompt} -> {chosen}'}
  pairs = new_job(pairs_config(finished[0], {'pairs': source}), tmp_path).pairs
  assert len(pairs['valid']) == 8 and len(pairs['train']) + 4 * len({*pairs['valid'].prompts}) == 80
  assert not {*pairs['valid'].prompts} & {*pairs['train'].prompts}
  assert f'{72 - len(pairs["train"])} of 72 training pairs are left out' in caplog.text


def test_pairs_with_equal_answers_are_said(finished, tmp_path, caplog):
  path = tmp_path / 'pairs.jsonl'
  source = {'kind': 'jsonl', 'path': str(path), 'template': '{prompt} -> {chosen}'}
  pair = lambda n, different: {'prompt': f'{n}', 'chosen': 'a', 'rejected': 'b' if different else 'a'}
  path.write_text(''.join(json.dumps(pair(n, n % 2)) + '\n' for n in range(40)))
  new_job(pairs_config(finished[0], {'pairs': source}), tmp_path)
  assert 'of 36 train pairs have equal answers' in caplog.text
  path.write_text(''.join(json.dumps(pair(n, False)) + '\n' for n in range(40)))
  with pytest.raises(ValueError) as error:
    new_job(pairs_config(finished[0], {'pairs': source}), tmp_path)
  assert_two_lines(error.value, 'data.mixture.pairs: all 36 train pairs have equal answers')


def test_the_digest_depends_on_all_that_scores_depend_on(finished, mixture, tmp_path):
  pairs = new_job(pairs_config(finished[0], mixture), tmp_path).pairs['train']
  (first, *rest), rejected = pairs.sides
  seen = dataclasses.replace(first, patches=np.ones((1, 4), np.float32))
  fields = [dataclasses.replace(fields, mask='condition') for fields in pairs.row_fields]
  felt = dataclasses.replace(first, vectors=np.full((1, 4), 2, np.float32))
  others = [dict(sides=([document, *rest], rejected)) for document in (seen, felt)]
  others += dict(row_fields=fields), dict(length=pairs.length - 1)
  assert len({pairs.digest(), *(dataclasses.replace(pairs, **x).digest() for x in others)}) == 5


def test_personal_data_of_both_answers_are_replaced(finished, tmp_path):
  path = tmp_path / 'pairs.jsonl'
  pair = lambda n: {'prompt': f'{n} a@b.de', 'chosen': f'yes c{n}@b.de', 'rejected': f'no r{n}@b.de'}
  path.write_text(''.join(json.dumps(pair(n)) + '\n' for n in range(20)))
  source = {'kind': 'jsonl', 'path': str(path), 'template': '{prompt} -> {chosen}', 'scrub': 'email'}
  model = tiny_runs.TINY['model'] | {'context': 64}
  job = new_job(pairs_config(finished[0], {'pairs': source}, model=model), tmp_path)
  texts = [job.tokenizers.decode_text(e.ids) for side in job.pairs['train'].sides for e in side]
  assert not any('@' in text for text in texts)
  assert all('<EMAIL_1>' in text and '<EMAIL_2>' in text for text in texts)


# ---------------------------------------------------------------------------------------- conversations


def messages(*texts):
  """Messages of the user and of the assistant in turn."""
  return [{'role': ('user', 'assistant')[n % 2], 'content': text} for n, text in enumerate(texts)]


def chat_rows(folder, base, rows, **preference):
  """(job, its batch of pair 0 of these records)."""
  path = folder / 'chats.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  source = {'kind': 'jsonl', 'path': str(path), 'template': '{chosen:chat}'}
  model = tiny_runs.TINY['model'] | {'context': 128}
  cfg = pairs_config(base, {'chats': source}, model=model, preference=preference, data__valid_fraction=0.0)
  job = new_job(cfg, folder)
  return job, job.pairs['train'].gather([0])


def learned(job, batch):
  """The texts of the targets of a row, chosen and rejected."""
  halves = zip(*(np.split(batch[f'{name}_BT'][0], 2) for name in ('target_ids', 'loss_mask')), strict=True)
  return [job.tokenizers.decode_text(ids[mask > 0]) for ids, mask in halves]


def test_replies_after_the_shared_messages_are_targets(finished, tmp_path):
  prompt, (good,), (bad,) = messages('hi', 'ho', 'say 1'), *(messages('', x)[1:] for x in ('one', 'ox'))
  whole = [{'chosen': [*prompt, good], 'rejected': [*prompt, bad]}] * 4
  job, batch = chat_rows(tmp_path, finished[0], whole)
  assert learned(job, batch) == ['one', 'ox']
  assert batch['loss_mask_BT'].sum() == len('one') + len('ox') + 2  # and the end of each turn
  apart = [{'prompt': prompt, 'chosen': [good], 'rejected': [bad]}] * 4
  _, joined = chat_rows(tmp_path, finished[0], apart, prompt='prompt')
  for name, rows in batch.items():
    np.testing.assert_array_equal(rows, joined[name])


def test_equal_questions_about_other_pictures_are_other_prompts():
  def prompt(picture):
    parts = [{'image': picture}, {'text': 'What is it?'}]
    answers = ([{'image': b'answer'}, {'text': answer}] for answer in ('a cat', 'a dog'))
    pair = [templates.chat_pieces(messages(parts, answer), 'x', 'here') for answer in answers]
    return content.digest(preference_pairs.prompt_of(*pair))

  assert prompt(b'1') == prompt(b'1') != prompt(b'2')


@pytest.mark.parametrize(
  ('row', 'preference', 'words'),
  [
    ({'chosen': messages('hi', 'ho'), 'rejected': messages('hi', 'ho')}, {}, 'without a reply of its own'),
    ({'chosen': messages('hi', 'ho'), 'rejected': messages('hi')}, {}, 'without a reply of its own'),
    ({'chosen': messages('hi', 'ho'), 'rejected': 'no'}, {}, 'not a list of messages'),
    ({'prompt': 'a', 'chosen': messages('hi'), 'rejected': messages('ho')}, {'prompt': 'prompt'}, 'is str'),
  ],
)
def test_conversations_that_are_no_pairs_are_named(finished, tmp_path, row, preference, words):
  with pytest.raises(ValueError) as error:
    chat_rows(tmp_path, finished[0], [row] * 4, **preference)
  assert_two_lines(error.value, 'chats.jsonl line', words)


def test_a_reference_needs_an_initial_model_and_a_template_an_answer(finished, mixture, tmp_path):
  base, _, _ = finished
  mesh = train.make_mesh(config.MeshConfig())
  cfg = pairs_config('', mixture)
  with pytest.raises(ValueError) as error:
    preferences.PreferenceJob(cfg, tmp_path, mesh)
  assert_two_lines(error.value, 'preference.loss=dpo')
  wrong = {'pairs': mixture['pairs'] | {'template': '{prompt} -> {rejected}'}}
  with pytest.raises(ValueError) as error:
    preferences.PreferenceJob(pairs_config(base, wrong), tmp_path, mesh)
  assert_two_lines(error.value, 'data.mixture.pairs.template')


def state_of(workdir):
  """The state of the data in the newest checkpoint."""
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  return checkpoints.read_extra(checkpoints.latest_good())['data']


def new_job(cfg, workdir):
  return preferences.PreferenceJob(cfg, workdir, train.make_mesh(config.MeshConfig()))


@pytest.fixture
def damaged(finished, tmp_path):
  """A folder with the stored reference of the run, a byte of it flipped."""
  shutil.copytree(finished[1] / 'cache', tmp_path / 'cache')
  path = next((tmp_path / 'cache').glob('reference-train-*.npy'))
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  return path


def test_a_changed_reference_is_refused_at_resume(finished, mixture, damaged):
  base, workdir, _ = finished
  job = new_job(pairs_config(base, mixture), damaged.parents[1])
  with pytest.raises(ValueError) as error:
    job.loader.restore(state_of(workdir))
  assert_two_lines(error.value, damaged.name, 'is changed')
  damaged.unlink()
  with pytest.raises(ValueError) as error:
    job.loader.restore(state_of(workdir))
  assert_two_lines(error.value, damaged.name, 'is missing')


def test_a_new_run_computes_a_changed_reference_again(finished, mixture, damaged):
  base, workdir, _ = finished
  job = new_job(pairs_config(base, mixture), damaged.parents[1])
  parent = base, checkpoint.Checkpoints(base / 'checkpoints').latest_good()
  job.load_initial_weights(job.program.init(), *parent)
  assert damaged.read_bytes() == (workdir / 'cache' / damaged.name).read_bytes()
  digests.verify_file(damaged)
  np.testing.assert_array_equal(job.pairs['train'].reference_NA, np.load(damaged))


def branch_config(workdir, mixture, **preference):
  changes = {'preference': preference} if preference else {}
  cfg = pairs_config('', mixture, steps=10, **changes)
  return dataclasses.replace(
    cfg, train=dataclasses.replace(cfg.train, branch_from=f'{workdir}@6', init_from='')
  )


def test_a_branch_keeps_the_reference_of_its_parent(finished, mixture, tmp_path):
  _, workdir, _ = finished
  assert train.train(branch_config(workdir, mixture), tmp_path)['steps'] == 10
  [path] = (tmp_path / 'cache').glob('reference-train-*.npy')
  assert path.read_bytes() == (workdir / 'cache' / path.name).read_bytes()
  digests.verify_file(path)
  assert state_of(tmp_path)['fingerprint'] == state_of(workdir)['fingerprint']
  assert 'origin' not in state_of(tmp_path)  # the pairs go on


def test_a_branch_of_a_run_without_reference_is_refused(finished, mixture, tmp_path):
  _, workdir, _ = finished
  state = state_of(workdir)
  without = state | {'fingerprint': {k: v for k, v in state['fingerprint'].items() if k != 'reference'}}
  job = new_job(branch_config(workdir, mixture), tmp_path)
  with pytest.raises(ValueError) as error:
    job.loader.branch(without, 6)
  assert_two_lines(error.value, 'preference.loss=dpo')
  job = new_job(branch_config(workdir, mixture, loss='simpo'), tmp_path)
  assert job.loader.branch(state, 6) == ['items continues after 64 rows']


def test_each_source_has_its_own_row_fields(finished, mixture, tmp_path):
  """A start marker after sep is a target only in sources whose targets are of several kinds."""
  base, _, _ = finished
  job = new_job(pairs_config(base, mixture), tmp_path)
  pairs, special = job.pairs['train'], job.tokenizers.vocabulary.special
  fields = pairs.row_fields[0]
  ids = np.array([97, special('sep'), special('boi'), 98, special('eos')], np.int32)
  document = dataclasses.replace(pairs.sides[0][0], ids=ids)
  fields = [dataclasses.replace(fields, predict_start=p) for p in (False, True)]
  reference_NA = np.arange(4, dtype=np.float32).reshape(2, 2)
  two = preference_pairs.PairRows(([document] * 2,) * 2, [0, 1], 8, np.array([0, 1]), fields, reference_NA)
  batch = two.gather([1, 0])
  masks = [[0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]]
  np.testing.assert_array_equal(batch['loss_mask_BT'], [m * 2 for m in masks])
  assert batch['reference_chosen_B'].tolist() == [2, 0]


def test_the_first_line_counts_the_tokens_of_both_answers(finished, mixture, tmp_path):
  base, workdir, result = finished
  job = new_job(pairs_config(base, mixture), tmp_path)
  assert '16 x 32 tokens a step' in job.describe()
  assert job.describe().endswith('36 train and 4 valid pairs')
  batches = [next(job.loader) for _ in range(8)]
  assert result['tokens'] == sum((b['segment_ids_BT'] > 0).sum() for b in batches)
  assert result['flops'] == result['tokens'] * job.flops['full']


# ------------------------------------------------------------------------------------------ studies


def test_jobs_that_train_a_gpt_are_told_from_tokenizers():
  for name, job in train.JOBS.items():
    assert trains_gpt(name) == issubclass(job, language_model.LanguageModelJob)


def test_budgets_count_both_answers(finished, mixture, tmp_path):
  cfg = pairs_config(finished[0], mixture)
  meter = budget.CostMeter(tmp_path)
  parameters, flops = meter.cost(cfg)
  assert parameters == finished[2]['parameters']
  for limits in ({'tokens': 5 * 8 * 2 * 32}, {'flops': 5 * 8 * 2 * 32 * flops}):
    assert budget.apply_budget(cfg, budget.Budget(**limits), meter).train.steps == 5


def test_arms_with_other_validation_pairs_differ(finished, mixture, tmp_path):
  path = tmp_path / 'pairs.jsonl'
  lines = map(json.loads, Path(mixture['pairs']['path']).read_text().splitlines())
  path.write_text(''.join(json.dumps(line | {'other': line['rejected'] + 'z'}) + '\n' for line in lines))
  described = []
  for rejected in ('rejected', 'other'):
    source = mixture['pairs'] | {'path': str(path)}
    cfg = pairs_config(finished[0], {'pairs': source}, preference={'rejected': rejected})
    with budget.open_job(cfg, tmp_path / 'study') as (job, _):
      described.append(proof.validation_inputs(job, cfg))
  (first, scored_on), (second, other) = described
  assert first != second and scored_on['sources'] != other['sources']
  assert scored_on['bytes'] is False and scored_on['unit'] == 'per pair'
  assert scored_on['preference.loss'] == 'dpo'
  assert list((tmp_path / 'study' / 'planning').glob('*/tokenizer/vocabulary.json'))
