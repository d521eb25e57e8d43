"""What is saved by giving seeds to undecided arms only? `python -m benchmarks.sequential`, one minute.

False verdicts: studies without any effect are judged after every seed from 3 to 20, and any better or worse
at any look is false. Savings: a mix of arms with and without effects, in standard deviations of a difference,
is judged so, and by a fixed number of seeds that finds as many of the effects. Letters: S studies, A arms, K
looks, N seeds.
"""

import argparse

import numpy as np

from benchmarks import error_rates, record
from gpt_jax.ablation.stats import inference, sequential

DESIGN = sequential.Sequential()
ARMS = (1, 3, 6, 12)
STUDIES = 2000
MIXES = {
  'half of four arms differ': (0.0, 0.0, 1.0, 2.0),
  'one of five arms differs': (0.0, 0.0, 0.0, 0.0, 1.5),
  'three of five arms differ': (0.0, 0.0, 1.0, 2.0, 3.0),
  'all of five arms differ': (1.0, 1.0, 1.0, 2.0, 3.0),
}


def p_at_looks(difference_SAN, examples=0):
  """P values of the t-test at each look, and those of the whole test so far: two arrays [S, A, K]."""
  looks = [inference.paired_test(difference_SAN[..., :n], examples)[-1] for n in DESIGN.looks_K]
  alone_SAK = np.nan_to_num(np.stack(looks, axis=-1), nan=1.0)
  whole = [sequential.sequential_p(alone_SAK[..., : k + 1], DESIGN) for k in range(len(looks))]
  return alone_SAK, np.stack(whole, axis=-1)


def rejects(p_SA):
  """Which arms Holm's method rejects, in each study."""
  return np.array(inference.holm(p_SA)) <= inference.ALPHA


def false_verdicts(noise, arms, studies=STUDIES, seed=0):
  """The share of studies with a verdict at any look -> (uncorrected for looks, sequential)."""
  rng = np.random.default_rng((seed, arms))
  difference_SAN, examples = error_rates.draw(noise, arms, DESIGN.most, studies, rng)
  alone_SAK, whole_SAK = p_at_looks(difference_SAN, examples)
  naive = np.any([rejects(alone_SAK[..., k]).any(1) for k in range(alone_SAK.shape[-1])], axis=0)
  return float(naive.mean()), float(rejects(whole_SAK[..., -1]).any(1).mean())


def draw(effects, seeds, studies, rng):
  """Differences [S, A, N] with these effects, in standard deviations."""
  values_SAN = rng.normal(size=(studies, len(effects) + 1, seeds)) / 2**0.5
  return values_SAN[:, 1:] - values_SAN[:, :1] + np.array(effects)[:, None]


def spend(difference_AN, whole_AK):
  """Give seeds to the undecided arms of a study -> (which differ [A], seeds of each [A])."""
  count = len(difference_AN)
  n_A, active_A = np.full(count, DESIGN.first), np.ones(count, bool)
  while True:
    p_A = whole_AK[np.arange(count), n_A - DESIGN.first]
    decided_A = rejects(p_A[None])[0]
    alpha = inference.ALPHA / max(1, (~decided_A).sum())
    for a in np.flatnonzero(active_A):
      values = difference_AN[a, : n_A[a]]
      left = sequential.seeds_left(len(values), values.mean(), values.std(ddof=1), 0.0, alpha, DESIGN)
      active_A[a] = not decided_A[a] and left > 0
    if not active_A.any():
      return decided_A, n_A
    n_A += active_A


def savings(effects, studies, seed=0):
  """Runs and power of a sequential study, and of the fixed number of seeds with as much power."""
  rng = np.random.default_rng(seed)
  difference_SAN = draw(effects, DESIGN.most, studies, rng)
  _, whole_SAK = p_at_looks(difference_SAN)
  decided, seeds = zip(*map(spend, difference_SAN, whole_SAK), strict=True)
  decided_SA, n_SA, is_real = np.array(decided), np.array(seeds), np.array(effects) > 0
  power, runs = decided_SA[:, is_real].mean(), (n_SA.sum(1) + n_SA.max(1)).mean()
  for fixed in range(2, 100):
    p_SA = inference.paired_test(draw(effects, fixed, studies, rng))[-1]
    if rejects(p_SA)[:, is_real].mean() >= power:
      break
  fixed_runs = fixed * (len(effects) + 1)
  return {
    'power': power,
    'mean seeds of each arm': n_SA.mean(0).round(2).tolist(),
    'runs': runs,
    'fixed seeds': fixed,
    'fixed runs': fixed_runs,
    'saved': 1 - runs / fixed_runs,
  }


def measure(studies=STUDIES):
  """All rates and savings."""
  return {
    'studies': studies,
    'design': DESIGN._asdict(),
    'false verdicts (uncorrected for looks, sequential)': {
      noise: {f'{arms} arms': false_verdicts(noise, arms, studies) for arms in ARMS}
      for noise in error_rates.NOISES
    },
    'savings': {name: savings(effects, studies // 4) for name, effects in MIXES.items()},
  }


def main():
  """Measure and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--studies', type=int, default=STUDIES)
  numbers = measure(parser.parse_args().studies)
  record.write_result('ablations/sequential', 'Seeds where they decide: false verdicts and runs', numbers)


if __name__ == '__main__':
  main()
