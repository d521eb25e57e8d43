"""Plans of adapters, preferences, rewards and distillation against the runs themselves, on a tiny model."""

import dataclasses

import jax
import numpy as np
import pytest

from gpt_jax import config, sample, train
from gpt_jax.cluster import batches
from gpt_jax.interop.encoders import families
from gpt_jax.model import adapters, encoder, param_trees
from gpt_jax.plan import format, job_programs, plan, search, topologies
from gpt_jax.step import params_of
from gpt_jax.training import start
from tests import encoders, tiny_runs
from tests.jobs import test_encoders_in_step
from tests.tiny_runs import assert_two_lines


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return tiny_runs.finished(tmp_path_factory)


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return tiny_runs.questions(tmp_path_factory.mktemp('records') / 'records.jsonl')


LORA = {'adapter': {'rank': 2}}
PAIRS = {'job': 'dpo'}
REWARDS = {'job': 'grpo'}
CASES = {
  'adapters': LORA,
  'dora and an embedding': {'adapter': {'rank': 2, 'kind': 'dora', 'train': ('embed_VD',)}},
  'int8 base': {'adapter': {'rank': 2, 'base_dtype': 'int8'}},
  'int4 base': {'adapter': {'rank': 2, 'base_dtype': 'int4'}, 'optim': {'ema': 0.0}},
  'dpo': PAIRS,
  'dpo with adapters': PAIRS | LORA,
  'kto': PAIRS | {'preference': {'loss': 'kto'}},
  'orpo': PAIRS | {'preference': {'loss': 'orpo'}},
  'grpo': REWARDS | {'grpo': {'kl': 0.1}},
  'grpo in pieces, with adapters': REWARDS | LORA | {'train': {'accumulate': 2}, 'grpo': {'kl': 0.1}},
  'grpo with shared completions': REWARDS | LORA | {'grpo': {'updates': 2}},
  'distil': {'job': 'distil', 'model': {'width': 8}},
}


@pytest.fixture
def one_device():
  chip = topologies.CHIPS['h200']
  return plan.Target(topologies.Topology('here-1', chip, 1), jax.devices()[:1], 1e12)


def nbytes(tree):
  """Bytes of the arrays of a tree."""
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('case', CASES)
def test_step_and_memory_are_those_of_the_run(case, base, records, one_device, tmp_path, monkeypatch):
  """The program letter by letter, and the bytes of the arrays that it and what runs before it get."""
  cfg = tiny_runs.on_base(base, records, **CASES[case])
  mesh, programs = train.make_mesh(cfg.mesh), {}

  def measure(lowered, arguments, mesh, target, beside=0):
    programs[lowered.as_text()] = nbytes_of = job_programs.total(arguments), beside
    return {'memory': {'fits': True, 'total': sum(nbytes_of)}}

  monkeypatch.setattr(plan, 'measure', measure)
  planned = plan.plan(cfg, one_device, decode=False)
  with jax.set_mesh(mesh):
    job = train.JOBS[cfg.train.job](cfg, tmp_path, mesh)
    state = start.begin(job, cfg, tmp_path).state
    seen = observed(monkeypatch)
    batch = job.prepare_batch(batches.to_devices(next(iter(job.loader)), mesh), state)
    step = job.program.step.lower(job.program.abstract, batch).as_text()
  extra = {'reference model': 'reference_model', 'teacher': 'teacher'}
  others = {name: getattr(job, field, None) for name, field in extra.items()}
  parts = {'trained parameters': state.model, 'optimizer': state.opt_state, 'frozen base': state.frozen}
  held = {name: nbytes(tree) for name, tree in (parts | {'batch': batch} | others).items()}
  assert planned['train']['held'] == {name: size for name, size in held.items() if size}
  assert set(planned['before']) == EXPECTED.get(cfg.train.job, lambda cfg: set())(cfg)
  assert step in programs
  held_arguments, beside = programs[step]
  assert held_arguments == job_programs.total(job.program.abstract) + nbytes(batch)
  assert beside == held['reference model'] + held['teacher']
  assert planned['rows'] * planned['length'] == batch['token_ids_BT'].size
  for name, size in seen.items():
    assert planned['before'][name]['memory']['total'] == size + nbytes_beside(cfg, state, held, name), name


EXPECTED = {
  'dpo': lambda cfg: {'score pairs'},
  'grpo': lambda cfg: (
    {'prefill of completions', 'decode of completions'}
    | ({'reference model'} if cfg.grpo.kl else set())
    | ({'sampled model'} if cfg.grpo.updates > 1 else set())
  ),
  'distil': lambda cfg: {'teacher'},
}


def observed(monkeypatch):
  """{name of a program before the step: bytes of its arguments}, filled when they run."""
  seen, decode = {}, sample.jit_decode

  def watch(model, state, *args):
    held = nbytes((model, state._replace(keys_B=None)))
    seen['decode of completions'] = held + 8 * len(state.done_B)  # keys of two words
    return decode(model, state, *args)

  monkeypatch.setattr(sample, 'jit_decode', watch)
  return seen


def nbytes_beside(cfg, state, held, name):
  """Bytes of the state, of weights merged with adapters and of a reference model during sampling."""
  merged = 0
  if state.frozen is not None:
    model = adapters.merge(state.frozen, state.model)
    merged = sum(x.nbytes for path, x in params_of(model).items() if path in state.model)
  key = 8 - state.key.nbytes  # counted as its two words
  return nbytes(state) + key + merged + held['reference model']


def test_a_plan_says_what_runs_before_a_step(base, records, one_device):
  """Compiled: two programs of a step of grpo, their times in its rate, and a search over whole groups."""
  cfg = tiny_runs.on_base(base, records, **CASES['grpo'])
  planned = plan.plan(cfg, one_device, decode=False)
  estimates = {name: program['estimate'] for name, program in planned['before'].items()}
  calls = {name: program['calls'] for name, program in planned['before'].items()}
  assert calls == {'prefill of completions': 1, 'decode of completions': 3, 'reference model': 1}
  step = planned['train']['estimate']
  expected = step['bound'] + sum(calls[name] * e['bound'] for name, e in estimates.items())
  assert step['step'] == pytest.approx(expected) and step['step'] > step['bound']
  tokens = cfg.train.batch_size * planned['length']
  assert step['tokens_per_second'] == pytest.approx(tokens / expected)
  text = '\n'.join(format.lines(planned))
  assert 'decode of completions, 3 x before each step:' in text and 'reference model' in text
  assert 'the reward on the host is not counted' in text
  found = search.best_plan(cfg, one_device, limit=2)
  assert found['batch_size'] % cfg.grpo.group == 0


def test_memory_beside_a_program_decides_whether_it_fits(base, records, one_device):
  cfg = tiny_runs.on_base(base, records, **CASES['distil'])
  planned = plan.plan(cfg, one_device, decode=False)
  needed = max(p['memory']['total'] for p in (planned['train'], planned['before']['teacher']))
  for room, fits in ((0, True), (-1, False)):
    chip = one_device.topology.chip._replace(memory=needed + room)
    topology = dataclasses.replace(one_device.topology, chip=chip)
    assert plan.plan(cfg, one_device._replace(topology=topology), decode=False)['fits'] is fits


@pytest.mark.parametrize(
  'changes, cause',
  [
    ({'job': 'image_tokenizer'}, 'train.job=image_tokenizer cannot be planned'),
    ({'job': 'distil', 'distil': {'teacher': 'none/such'}}, 'none/such'),
    (REWARDS | {'train': {'batch_size': 6}}, 'grpo.group=4'),
    (PAIRS | {'train': {'init_from': ''}}, 'preference.loss=dpo'),
    (LORA | {'train': {'init_from': ''}}, 'adapter.rank=2'),
  ],
)
def test_what_a_run_refuses_is_refused(changes, cause, base, records, one_device):
  if changes.get('job') == 'image_tokenizer':
    cfg = config.build(config.Config, tiny_runs.codec_section('image'))
  else:
    cfg = tiny_runs.on_base(base, records, **changes)
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    plan.plan(cfg, one_device, decode=False)
  assert_two_lines(error.value, cause)


@pytest.mark.slow
@pytest.mark.parametrize('case', ['dpo with adapters', 'grpo', 'distil'])
def test_eight_devices_hold_shares_of_all(case, base, records, one_device):
  """Compiled with fsdp=8: what can be sharded is, and the programs before a step have collectives, too."""
  cfg = tiny_runs.on_base(base, records, **CASES[case])
  topology = topologies.Topology('here-8', one_device.topology.chip, 8)
  whole = plan.plan(cfg, one_device, decode=False)['train']['held']
  shared = plan.plan(cfg, plan.Target(topology, jax.devices(), 1e12), decode=False)
  for name, size in shared['train']['held'].items():
    are_factors = case.endswith('adapters') and name in ('trained parameters', 'optimizer')  # have no D
    assert size < whole[name] / (1 if are_factors else 4), name
  assert all(program['collectives'] for program in shared['before'].values())


@pytest.mark.parametrize('training', ['frozen', 'whole'])
def test_an_encoder_in_the_step_is_planned(training, one_device, tmp_path, monkeypatch):
  """Its bytes are held, and rows hold pixels: a batch is that of the run."""
  eye = encoders.write(tmp_path / 'eye', encoders.CLIP)
  cfg = test_encoders_in_step.experiment(eye, training)
  monkeypatch.setattr(plan, 'measure', lambda *args: {'memory': {'fits': True}})
  planned, mesh = plan.plan(cfg, one_device, decode=False), train.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    job = train.JOBS[cfg.train.job](cfg, tmp_path, mesh)
    batch = next(iter(job.loader))
  abstract = job.program.abstract
  parts = {'trained parameters': abstract.model, 'frozen base': abstract.frozen}
  held = {name: job_programs.total(tree) for name, tree in parts.items()} | {'batch': nbytes(batch)}
  assert {name: planned['train']['held'].get(name, 0) for name in held} == held
  eye_bytes = 4 * param_trees.count(encoder.Encoder(families.read_spec(encoders.CLIP)))
  where = 'frozen base' if training == 'frozen' else 'trained parameters'
  assert held[where] >= eye_bytes
  values = np.unique(batch['patches_BTA'])
  assert batch['patches_BTA'].shape[-1] == 16 and np.isin(values, np.arange(257)).all() and len(values) > 9
