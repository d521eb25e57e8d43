"""Single-bit flips in checkpoints: `python -m benchmarks.bit_flips [--flips=100]`.

Each trial flips one random bit of one of three kinds of file: array data, Orbax's metadata, our
digests. The newest good step must then be the older one, with the values that were saved. Orbax alone
also restores the damaged step, for comparison. Writes results/survival/bit_flips.json.
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
UPTO = {'data': 6, 'metadata': 9, 'digests': 10}  # of ten flips, 0 to 5 hit data, 6 to 8 metadata, 9 digests


def kind_of(path):
  """The kind of a file in the checkpoints folder: digests, data or metadata."""
  folders = [parent.name for parent in path.parents]
  return 'digests' if 'digests' in folders else 'data' if path.parent.name == 'd' else 'metadata'


def files_by_kind(folder):
  """Map each kind to the non-empty files of the newer step."""
  files = [path for path in (folder / str(NEWER)).rglob('*') if path.is_file()]
  by_kind = {}
  for path in [*files, folder / 'digests' / f'{NEWER}.json']:
    if path.stat().st_size:
      by_kind.setdefault(kind_of(path), []).append(path)
  return by_kind


def flip(path, rng):
  """Flip one bit of a file -> the original content."""
  content = path.read_bytes()
  altered = bytearray(content)
  altered[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(altered)
  return content


def bitwise_equal(one, other):
  """Whether two trees hold the same bits."""
  plain = lambda tree: [np.asarray(x) for x in jax.tree.leaves(trees.to_tree(tree))]
  pairs = list(zip(plain(one), plain(other), strict=True))
  return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def restore_with_orbax(folder, step, like, expected):
  """Restore a step with Orbax, without digests -> 'raised', 'wrong values' or 'unharmed'."""
  abstract = trees.to_abstract_tree(like)
  with warnings.catch_warnings(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
    warnings.simplefilter('ignore')
    try:
      restored = reader.restore(folder / str(step) / 'state', args=ocp.args.StandardRestore(abstract))
    except Exception:  # any error counts as detection
      return 'raised'
  return 'unharmed' if bitwise_equal(trees.from_tree(restored, like), expected) else 'wrong values'


def trial(folder, path, rng, like, states):
  """Flip a bit of a file, restore, undo the flip -> {kind, file, detected, fell_back, orbax}."""
  content, lines = flip(path, rng), []
  try:
    checkpoints = Checkpoints(folder, report=lines.append)
    step = checkpoints.latest_good()
    return {
      'kind': kind_of(path),
      'file': str(path.relative_to(folder)),
      'detected': any(f'checkpoint {NEWER}' in line for line in lines),
      'fell_back': step == OLDER and bitwise_equal(checkpoints.restore(step, like), states[OLDER]),
      'orbax': restore_with_orbax(folder, NEWER, like, states[NEWER]),
    }
  finally:
    path.write_bytes(content)


def trials(folder, like, states, flips, seed=0):
  """Run `flips` trials, six of ten in array data -> their outcomes."""
  rng, files = random.Random(seed), files_by_kind(folder)
  sizes = {path: path.stat().st_size for paths in files.values() for path in paths}
  outcomes = []
  for n in range(flips):
    kind = next(name for name, upto in UPTO.items() if n % 10 < upto)
    # Data: every bit is equally likely. Metadata: every file is, since most are small.
    weights = [sizes[path] if kind == 'data' else 1 for path in files[kind]]
    [path] = rng.choices(files[kind], weights)
    outcomes.append(trial(folder, path, rng, like, states))
  return outcomes


def count_outcomes(outcomes):
  """Count outcomes by kind of file, and of all."""
  counts = {}
  for name in (*UPTO, 'all'):
    chosen = [outcome for outcome in outcomes if name in (outcome['kind'], 'all')]
    counts[name] = {
      'flips': len(chosen),
      'detected': sum(outcome['detected'] for outcome in chosen),
      'silent': sum(not outcome['detected'] for outcome in chosen),
      'fell_back': sum(outcome['fell_back'] for outcome in chosen),
      'orbax_alone': dict(collections.Counter(outcome['orbax'] for outcome in chosen)),
    }
  return counts


def main():
  """Save two states of a small GPT, flip bits, write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--flips', type=int, default=100)
  arguments = parser.parse_args()
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # Orbax logs restores that it aborts
  cfg = Config()
  model = ModelConfig(layers=4, width=128, heads=4, vocab=256, context=128).resolved()
  mesh = make_mesh(cfg.mesh)
  with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as name:
    program = gpt_program(cfg, model, mesh)
    initial = program.init()
    increment = lambda x: x + 1 if jax.numpy.issubdtype(x.dtype, np.number) else x
    states = {OLDER: initial, NEWER: jax.tree.map(increment, initial)}
    checkpoints = CheckpointWriter(Path(name), CheckpointConfig())
    for step, state in states.items():
      checkpoints.save(step, state, {'seconds': 1.0})
    checkpoints.close()
    size = sum(path.stat().st_size for path in Path(name).rglob('*') if path.is_file())
    outcomes = trials(Path(name), program.abstract, states, arguments.flips)
  counts = count_outcomes(outcomes)
  for row in counts.items():
    print(*row)
  record.write_result(
    'survival/bit_flips',
    f'{arguments.flips} single-bit flips in checkpoints, {counts["all"]["detected"]} found',
    {'bytes': size, **counts, 'missed': [o for o in outcomes if not (o['detected'] and o['fell_back'])]},
  )


if __name__ == '__main__':
  main()
