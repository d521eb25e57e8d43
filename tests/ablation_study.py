"""A synthetic finished study for the tests of study reports."""

import numpy as np

from gpt_jax.runs import records

ARMS = {'learned': 0.021, 'sinusoidal': 0.034, 'alibi': -0.028, 'nope=a|b': -0.004, 'none': 0.31}
TEXT = 'KING RICHARD:\nAnd the so dest with the sould of hath,\nTo the count the world to my heart.\n'
NASTY = '<script>alert("x")</script> & </pre> caf\u00e9 \x00\x07\udc80'


def arm(level, base=False):
  """One arm of study.json."""
  name = 'base' if base else f'positions={level}'
  added = ['positions/table_TD'] if level == 'learned' else []
  return {
    'name': name,
    'slug': name.replace('=', '-').replace('|', '-'),
    'levels': {'positions': level},
    'is_baseline': base,
    'diff': {} if base else {'model.positions': ['rope', level]},
    'parameters': 812_000 + 16_384 * bool(added),
    'flops_per_token': 5.1e6,
    'steps': 600,
    'tokens': 2_457_600,
    'parameter_diff': {'added': added, 'removed': [], 'reshaped': {}},
    'fingerprint': name,
    'shares_program_with_base': base,
    'flags': [],
  }


def study(levels=tuple(ARMS), seeds=5):
  """study.json of a one-factor-at-a-time sweep."""
  return {
    'question': 'Which position encoding should a small character model use?',
    'name': 'positions',
    'base': 'experiments/shakespeare_char.py:size=small',
    'command': 'launch.py ablate --config=experiments/ablations/positions.py --workdir=runs/p',
    'metric': 'valid_loss',
    'better': 'lower',
    'tolerance': 0.01,
    'budget': {'tokens': 2_457_600, 'flops': 0, 'seconds': 0, 'parameters': 0},
    'seeds': list(range(seeds)),
    'sweep': 'one_at_a_time',
    'factors': {'positions': ['rope', *levels]},
    'arms': [arm('rope', base=True), *map(arm, levels)],
    'versions': {'python': '3.12.1', 'jax': '0.10.2', 'git': '0123abc', 'device': '2 x cpu'},
  }


def row(arm, seed, folder, effect=0.0, random=None, samples=True):
  """A finished run; `effect` is added to its final losses."""
  random = random or np.random.default_rng(seed)
  shared = np.random.default_rng(1000 + seed).normal() * 0.02  # seed effect that pairing removes
  tokens = np.linspace(204_800, 2_457_600, 12)
  noise = np.cumsum(random.normal(size=12)) * 0.0012
  loss = 1.62 + 2.2 / (1 + tokens / 9e4) ** 0.8 + effect * np.sqrt(tokens / tokens[-1])
  loss = loss + shared + noise
  place = folder / 'runs' / arm['slug'] / f'seed{seed}'
  if samples:
    (place / 'samples').mkdir(parents=True)
    (place / 'samples' / 'step_00000300.txt').write_text('early')
    (place / 'samples' / 'step_00000600.txt').write_text(f'{arm["name"]}\n{TEXT}{NASTY[:-1]}')
  seconds = 31 + random.normal() + 4 * (arm['levels']['positions'] == 'alibi')
  result = {
    'steps': 600,
    'loss': float(loss[-1] - 0.1),
    'valid_loss': float(loss[-1]),
    'valid_loss/text': float(loss[-1]),
    'parameters': arm['parameters'],
    'tokens': 2_457_600,
    'seconds': float(seconds),
    'tokens_per_second': float(2_457_600 / seconds),
    'hardware': '2 x cpu',
    'data': 'feedc0de' * 8,
    'tokenizer': 'c0ffee00' * 8,
    'evaluations': [{'task': 'perplexity', 'metric': 'bits_per_byte', 'value': float(loss[-1] * 1.44)}],
  }
  curve = [[float(x), float(y)] for x, y in zip(tokens, loss, strict=True)]
  return {'arm': arm['name'], 'seed': seed, 'folder': str(place), 'status': 'done'} | {
    'message': '',
    'result': result,
    'curve': curve,
    'how': 'alone',
  }


def rows(planned, folder, samples=True):
  """A row for each arm and seed of `study`."""
  finished = []
  for i, arm_ in enumerate(planned['arms']):
    effect = ARMS.get(arm_['levels']['positions'], 0.0)
    for seed in planned['seeds']:
      random = np.random.default_rng((i, seed))
      finished.append(row(arm_, seed, folder, effect, random, samples and seed == 0))
  return finished


def lose(row, status, message):
  """Remove the result from a row."""
  row.update(status=status, message=message, result={}, curve=row['curve'][:3])


def write(folder, planned, attempts=(), analysis=None):
  """Write the files of a study folder besides its runs."""
  folder.mkdir(parents=True, exist_ok=True)
  records.write_json(folder / 'study.json', planned)
  if analysis:
    records.write_json(folder / 'analysis.json', analysis)
  for attempt in attempts:
    records.append_line(folder / 'attempts.jsonl', attempt)
