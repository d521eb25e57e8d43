"""Single-bit flips in checkpoints: `python -m benchmarks.bit_flips [--flips=100]`.

Each flip is of one random bit, in a random place of one of three kinds of file: array data, Orbax's
metadata, our digests. The newest good step must then be the older one, and restore as it was
written. The same harmed step is also given to Orbax alone. Keeps results/survival/bit_flips.json.
"""

import argparse
import collections
import logging
import random
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import record
from gpt_jax.config import Config
from gpt_jax.model.config import ModelConfig
from gpt_jax.sharding import make_mesh
from gpt_jax.step import gpt_program
from gpt_jax.training import trees
from gpt_jax.training.checkpoint import CheckpointConfig, Checkpoints
from gpt_jax.training.checkpoint_writer import CheckpointWriter

OLDER, NEWER = 1, 2
UPTO = {'data': 6, 'metadata': 9, 'digests': 10}  # of ten flips, up to which number is of what


def kind(path):
  """What a file of the checkpoints folder holds."""
  folders = [parent.name for parent in path.parents]
  return 'digests' if 'digests' in folders else 'data' if path.parent.name == 'd' else 'metadata'


def victims(folder):
  """{kind: files of the newer step}; those of Orbax's array data are the ones that hold it."""
  files = [path for path in (folder / str(NEWER)).rglob('*') if path.is_file()]
  found = {}
  for path in [*files, folder / 'digests' / f'{NEWER}.json']:
    if path.stat().st_size:
      found.setdefault(kind(path), []).append(path)
  return found


def flip(path, rng):
  """Flip one bit of a file -> its content before."""
  content = path.read_bytes()
  altered = bytearray(content)
  altered[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(altered)
  return content


def alike(one, other):
  """Whether two trees hold the same bits."""
  plain = lambda tree: [np.asarray(x) for x in jax.tree.leaves(trees.to_tree(tree))]
  pairs = list(zip(plain(one), plain(other), strict=True))
  return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def orbax_alone(folder, step, like, expected):
  """What Orbax makes of a step, without digests -> 'raised', 'wrong values' or 'unharmed'."""
  wanted = trees.to_abstract_tree(like)
  with warnings.catch_warnings(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
    warnings.simplefilter('ignore')
    try:
      found = reader.restore(folder / str(step) / 'state', args=ocp.args.StandardRestore(wanted))
    except Exception:  # whatever: it noticed
      return 'raised'
  return 'unharmed' if alike(trees.from_tree(found, like), expected) else 'wrong values'


def trial(folder, path, rng, like, states):
  """Flip a bit of a file, see what happens, mend it -> {kind, file, detected, good, orbax}."""
  content, lines = flip(path, rng), []
  try:
    checkpoints = Checkpoints(folder, report=lines.append)
    step = checkpoints.latest_good()
    return {
      'kind': kind(path),
      'file': str(path.relative_to(folder)),
      'detected': any(f'checkpoint {NEWER}' in line for line in lines),
      'fell_back': step == OLDER and alike(checkpoints.restore(step, like), states[OLDER]),
      'orbax': orbax_alone(folder, NEWER, like, states[NEWER]),
    }
  finally:
    path.write_bytes(content)


def trials(folder, like, states, flips, seed=0):
  """So many flips, one after another, six of ten in array data -> their outcomes."""
  rng, files = random.Random(seed), victims(folder)
  sizes = {path: path.stat().st_size for paths in files.values() for path in paths}
  outcomes = []
  for n in range(flips):
    chosen = next(name for name, upto in UPTO.items() if n % 10 < upto)
    # Any bit of the data is as likely as another; of metadata any file, most of which are small.
    weights = [sizes[path] if chosen == 'data' else 1 for path in files[chosen]]
    [path] = rng.choices(files[chosen], weights)
    outcomes.append(trial(folder, path, rng, like, states))
  return outcomes


def summary(outcomes):
  """Counts by kind of file and in all."""
  told = {}
  for name in (*UPTO, 'all'):
    of = [outcome for outcome in outcomes if name in (outcome['kind'], 'all')]
    told[name] = {
      'flips': len(of),
      'detected': sum(outcome['detected'] for outcome in of),
      'silent': sum(not outcome['detected'] for outcome in of),
      'fell_back': sum(outcome['fell_back'] for outcome in of),
      'orbax_alone': dict(collections.Counter(outcome['orbax'] for outcome in of)),
    }
  return told


def main():
  """Save two states of a small GPT, flip bits, and keep the outcome."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--flips', type=int, default=100)
  arguments = parser.parse_args()
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # of restores that Orbax gave up
  cfg = Config()
  model = ModelConfig(layers=4, width=128, heads=4, vocab=256, context=128).resolved()
  mesh = make_mesh(cfg.mesh)
  with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as name:
    program = gpt_program(cfg, model, mesh)
    first = program.init()
    rise = lambda x: x + 1 if jax.numpy.issubdtype(x.dtype, np.number) else x
    states = {OLDER: first, NEWER: jax.tree.map(rise, first)}
    checkpoints = CheckpointWriter(Path(name), CheckpointConfig())
    for step, state in states.items():
      checkpoints.save(step, state, {'seconds': 1.0})
    checkpoints.close()
    size = sum(path.stat().st_size for path in Path(name).rglob('*') if path.is_file())
    outcomes = trials(Path(name), program.abstract, states, arguments.flips)
  told = summary(outcomes)
  for row in told.items():
    print(*row)
  record.keep(
    'survival/bit_flips',
    f'{arguments.flips} single-bit flips in checkpoints, {told["all"]["detected"]} found',
    {'bytes': size, **told, 'missed': [o for o in outcomes if not (o['detected'] and o['fell_back'])]},
  )


if __name__ == '__main__':
  main()
