"""Training runs of seconds, shared by the tests of training, checkpoints, tasks and the command line."""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache

from gpt_jax import config, sharding, train
from gpt_jax.cli import experiment_file
from gpt_jax.evaluation import trained
from gpt_jax.runs import hardware
from gpt_jax.training import checkpoint, trees

TINY = {
  'data.mixture': {'text': {'kind': 'synthetic', 'documents': 60}},
  'model': {'layers': 1, 'width': 16, 'heads': 2, 'context': 32},
  # eps: updates stay smooth where gradients are near zero, so that runs can be compared.
  'optim': {'lr': 2e-2, 'warmup': 2, 'eps': 1e-3, 'ema': 0.5},
  'train': {'steps': 12, 'batch_size': 16, 'eval_every': 4, 'sample_every': 6, 'eval_tokens': 600},
  'checkpoint': {'every': 3},
  'log': {'every': 1},
  'sample': {'max_new_tokens': 8},
}
# Four tasks on images of 16 codes and sounds of 5 or 6; a row holds one to three documents.
MEDIA = {
  'data.mixture': {
    'read': {'kind': 'digits', 'template': '{image:image} -> {name}'},
    'draw': {'kind': 'digits', 'template': '{name} -> {image:image}'},
    'listen': {'kind': 'keypad', 'template': '{audio:audio} -> {name}', 'documents': 60},
    'dial': {'kind': 'keypad', 'template': '{name} -> {audio:audio}', 'documents': 60},
  },
  'data': {'packing': 'first_fit', 'condition_dropout': 0.1},
  'image': {'kind': 'patches', 'height': 8, 'width': 8, 'patch': 2, 'codes': 16},
  'audio': {'kind': 'frames', 'codes': 8},
  'model': {'layers': 1, 'width': 16, 'heads': 2, 'context': 32, 'positions': 'mrope'},
  'train': TINY['train'] | {'sample_prompts': ()},
}
NETWORK = {'kind': 'fsq', 'levels': (4, 4), 'network_width': 16, 'network_blocks': 1}
# Learned tokenizers: the changes of each modality.
CODECS = {
  'image': {
    'data.mixture': {'digits': {'kind': 'digits', 'template': '{image:image}'}},
    'image': NETWORK | {'height': 8, 'width': 8, 'patch': 2},
  },
  'audio': {
    'data.mixture': {'keypad': {'kind': 'keypad', 'template': '{audio:audio}', 'documents': 60}},
    'audio': NETWORK | {'seconds': 0.5},
  },
}


def section(**changes):
  """The tiny experiment as a ConfigDict; `changes` by dotted key, '.' written as '__'."""
  config_dict = config.default()
  for key, value in (TINY | {key.replace('__', '.'): v for key, v in changes.items()}).items():
    *parents, name = key.split('.')
    node = functools.reduce(lambda node, parent: node[parent], parents, config_dict)
    if isinstance(value, dict) and key != 'data.mixture':
      node[name].update(value)
    else:
      node[name] = value
  return experiment_file.complete_sources(config_dict)


def experiment(**changes):
  """The tiny experiment as a Config."""
  return config.build(config.Config, section(**changes))


def media(**changes):
  """The tiny experiment with images and sounds as a ConfigDict; `changes` as in `section`."""
  return section(**{key.replace('.', '__'): value for key, value in MEDIA.items()} | changes)


def codec_section(modality, **changes):
  """A tiny learned tokenizer of images or sounds as a ConfigDict; `changes` as in `section`."""
  fields = {key.replace('.', '__'): value for key, value in CODECS[modality].items()}
  more = {'data__packing': 'first_fit', 'train__job': f'{modality}_tokenizer'}
  plain = config.default()
  unused = {f'{s}__{key}': value for s in ('model', 'sample') for key, value in plain[s].items()}
  return section(**unused | fields | more | changes)


def codec(modality, **changes):
  """A tiny learned tokenizer as a Config."""
  return config.build(config.Config, codec_section(modality, **changes))


def questions(path):
  """Write forty questions, each with an answer and another one -> data.mixture of them."""
  record = lambda n: {'question': f'say {n:02d}', 'chosen': f'{n % 10}' * 3, 'rejected': 'abcdefg'[n % 7] * 2}
  path.write_text(''.join(json.dumps(record(n)) + '\n' for n in range(40)))
  return {'records': {'kind': 'jsonl', 'path': str(path), 'template': '{question} -> {chosen}'}}


def on_base(base, records, job='gpt', **changes):
  """The Config of a job that begins with the run folder `base`, or learns from it.

  records: data.mixture of `questions`, for preferences and rewards. changes: {section: {key: value}}.
  """
  pooled = job in ('dpo', 'grpo')
  cfg = section(data__mixture=records) if pooled else section()
  cfg.tokenizer = config.section(config.of_run(base).tokenizer)
  if pooled:
    cfg.data.packing, cfg.optim.ema = 'first_fit', 0.0
  node, key = (cfg.distil, 'teacher') if job == 'distil' else (cfg.train, 'init_from')
  node[key] = str(base)
  cfg.grpo.update(group=4, max_new_tokens=3)
  cfg.train.update(job=job, steps=4, eval_every=2, sample_every=0)
  for name, values in changes.items():
    cfg[name].update(values)
  return config.build(config.Config, cfg)


def stop_before(step):
  """A should_stop that becomes true at `step` steps, or at that many calls without a step."""
  calls = iter(range(step))
  return lambda done=None: next(calls, None) is None if done is None else done >= step


def finished(factory):
  """The run folder of the tiny experiment, trained to the end once a session. Do not change it."""
  return _once(factory, 'finished', experiment())


def media_finished(factory):
  """The run folder of the tiny experiment with images and sounds. Do not change it."""
  return _once(factory, 'media', config.build(config.Config, media()))


def codec_finished(factory, modality):
  """The run folder of a tiny learned tokenizer. Do not change it."""
  return _once(factory, f'{modality}_codec', codec(modality))


def _once(factory, name, cfg):
  workdir = shared(factory) / name
  with open(shared(factory) / f'{name}.lock', 'w') as file, compiled_programs(factory):
    fcntl.flock(file, fcntl.LOCK_EX)  # one process trains, the others wait
    if not (workdir / 'report.html').exists():
      train.train(cfg, workdir)
  return workdir


def shared(factory):
  """The temporary folder of a session, the same in all processes that pytest-xdist starts."""
  folder = factory.getbasetemp()
  return folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder


@contextlib.contextmanager
def compiled_programs(factory):
  """Use one device, and a compilation cache on disk, so that equal programs compile once per session.

  Compilation dominates the cost, and eight devices cost a third more. A test that needs them restores
  `sharding.make_mesh`.
  """
  options = {
    'jax_compilation_cache_dir': str(shared(factory) / 'compiled'),
    'jax_persistent_cache_min_compile_time_secs': 0.2,
  }
  before = {name: getattr(jax.config, name) for name in options}
  _configure(options)
  one_device = lambda cfg, devices=None: sharding.make_mesh(cfg, jax.devices()[:1])
  try:
    with (
      # Measuring takes seconds where XLA optimizes little, as in these tests.
      mock.patch.object(hardware, 'measured_matmul_flops', lambda: 1e11),
      mock.patch.object(train, 'make_mesh', one_device),
      mock.patch.object(trained, 'make_mesh', one_device),
    ):
      yield
  finally:
    _configure(before)


def _configure(options):
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  hardware.peak_flops.cache_clear()


def arrays(workdir):
  """{path: array} of a run's newest good checkpoint, read without its config."""
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  step = checkpoints.latest_good()
  like = trees.nest(checkpoints.array_metadata(step))
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    path = checkpoints.folder / str(step) / 'state'
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  return trees.flat(tree)


def snapshot(folder):
  """{relative path: hash of the content} of a folder, None if there is none."""
  if not folder.exists():
    return None
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_two_lines(message, *parts):
  """A cause line with these parts, then a fix line, and nothing else."""
  cause, fix = str(message).split('\n')
  assert fix.startswith('fix: ')
  assert len(fix) > len('fix: xx')
  for part in parts:
    assert part in cause, (part, cause)
  return cause, fix
