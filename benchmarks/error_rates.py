"""How often does the laboratory judge wrongly? `python -m benchmarks.error_rates`, 40 seconds of one core.

Studies without any effect are drawn and judged by the tests of `gpt_jax.ablation.stats.inference`: every
better or worse is false. A rate is that of whole studies, with any number of false verdicts. Letters: S
studies, A arms, N seeds. The values of a run are normal, heavy-tailed (t with 2 degrees of freedom), skewed
(log-normal), or accuracies on few examples, with and without examples that are hard for all.
"""

import argparse
import functools

import numpy as np

from benchmarks import record
from gpt_jax.ablation.stats import inference

ARMS, SEEDS = (1, 2, 3, 6, 12), (2, 3, 5, 10)
STUDIES = 20_000  # of a cell: a true rate of 5 % then shows as 4.6 to 5.4 % in 99 % of cells
EXAMPLES = (60, 100, 180)
ACCURACIES = (0.5, 0.9, 0.98)
NOISES = {  # name: (values of a shape, how many examples they are shares of)
  'normal': (lambda rng, shape: rng.normal(size=shape), 0),
  't(2)': (lambda rng, shape: rng.standard_t(2, shape), 0),
  'log-normal': (lambda rng, shape: rng.lognormal(size=shape), 0),
} | {
  f'accuracy {p:g} of {m}': (lambda rng, shape, m=m, p=p: rng.binomial(m, p, shape) / m, m)
  for m in EXAMPLES
  for p in ACCURACIES
}


def draw(noise, arms, seeds, studies, rng):
  """Differences [S, A, N] of arms and one baseline without any effect, and the number of examples."""
  values, examples = NOISES[noise]
  value_SAN = values(rng, (studies, arms + 1, seeds))
  return value_SAN[:, 1:] - value_SAN[:, :1], examples


def false_verdicts(noise, arms, seeds, studies=STUDIES, seed=0):
  """The share of studies with any verdict better or worse."""
  difference_SAN, examples = draw(noise, arms, seeds, studies, np.random.default_rng((seed, arms, seeds)))
  p_SA = inference.paired_test(difference_SAN, examples)[-1]
  return float((np.array(inference.holm(p_SA)) <= inference.ALPHA).any(1).mean())


def false_winners(noise, arms, seeds, studies=STUDIES, seed=0):
  """The share of studies in which the best of equal arms is found to beat the second best."""
  rng = np.random.default_rng((seed, arms, seeds))
  values, examples = NOISES[noise]
  value_SAN = values(rng, (studies, arms, seeds))
  order_SA = np.argsort(value_SAN.mean(-1), axis=1)
  best, second = (np.take_along_axis(value_SAN, order_SA[:, k, None, None], 1)[:, 0] for k in (0, 1))
  return float((inference.paired_test(best - second, examples)[-1] <= inference.ALPHA).mean())


def misses_of_the_best(arms, seeds, effect=-1.0, studies=STUDIES, seed=0):
  """How often a headline's interval misses the effect, which all arms have, of the arm that it names.

  Returns (of its own interval, of the one for all arms at once), among all studies.
  """
  rng = np.random.default_rng((seed, arms, seeds))
  difference_SAN, _ = draw('normal', arms, seeds, studies, rng)
  mean_SA, _, se_SA, _, p_SA = inference.paired_test(difference_SAN + effect)
  is_better_SA = (np.array(inference.holm(p_SA)) <= inference.ALPHA) & (mean_SA < 0)
  best_S = np.where(is_better_SA, mean_SA, np.inf).argmin(1)
  rows = np.flatnonzero(is_better_SA.any(1))
  mean, se = mean_SA[rows, best_S[rows]], se_SA[rows, best_S[rows]]
  levels = (inference.ALPHA, inference.ALPHA / arms)
  widths = (se * inference.half_width(seeds, 1.0, alpha=level) for level in levels)
  return tuple(float((abs(mean - effect) > half).sum() / studies) for half in widths)


def two_level_misses(seeds, examples, spread, hard, studies=STUDIES, seed=0):
  """The share of intervals that miss a difference of 0, with noise of seeds, of examples and of both.

  spread, hard: standard deviations of what differs from seed to seed, and from example to example, where
  that of the rest is 1. Returns (of seeds alone, of both levels).
  """
  rng, misses = np.random.default_rng((seed, seeds, examples)), []
  for _ in range(studies):
    difference_NM = rng.normal(size=(seeds, examples)) + spread * rng.normal(size=(seeds, 1))
    difference_NM += hard * rng.normal(size=examples)
    sampling = inference.example_sampling(difference_NM)
    tests = (inference.paired_test(difference_NM.mean(1), sampling_X=x)[-1] for x in (0.0, sampling))
    misses.append([p <= inference.ALPHA for p in tests])
  return tuple(np.mean(misses, axis=0).tolist())


def false_equalities(skewed, seeds, studies=STUDIES, seed=0):
  """The share of arms found to be no different, where the mean difference is the tolerance itself.

  The differences are normal, or log-normal: then the few large ones, which the mean has, are often not drawn.
  """
  rng = np.random.default_rng((seed, skewed, seeds))
  noise = rng.lognormal(size=(studies, seeds)) - np.exp(0.5) if skewed else rng.normal(size=(studies, seeds))
  return float(np.mean([inference.equivalence(1.0 + 0.2 * one, 1.0) <= inference.ALPHA for one in noise]))


def measure(studies=STUDIES):
  """All rates, by name of the question."""
  cells = [(arms, seeds) for arms in ARMS for seeds in SEEDS]
  table = lambda rate, cells: {f'{arms} arms, {seeds} seeds': rate(arms, seeds) for arms, seeds in cells}
  several = [(arms, seeds) for arms, seeds in cells if arms > 1]
  return {
    'studies': studies,
    'false verdicts': {
      noise: table(functools.partial(false_verdicts, noise, studies=studies), cells) for noise in NOISES
    },
    'false winners': {
      noise: table(functools.partial(false_winners, noise, studies=studies), several)
      for noise in ('normal', 't(2)', 'log-normal', 'accuracy 0.5 of 100')
    },
    'false "no difference" (normal, log-normal differences)': {
      f'{seeds} seeds': [false_equalities(skewed, seeds, studies // 10) for skewed in (False, True)]
      for seeds in SEEDS
    },
    'headlines that miss (own interval, for all arms)': table(
      functools.partial(misses_of_the_best, studies=studies), [(arms, 5) for arms in ARMS]
    ),
    'task scores that miss (seeds alone, both levels)': {
      f'{seeds} seeds, 100 examples': two_level_misses(seeds, 100, 0.1, 1.0, studies // 10) for seeds in SEEDS
    },
  }


def main():
  """Measure and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--studies', type=int, default=STUDIES)
  numbers = measure(parser.parse_args().studies)
  record.write_result('ablations/error_rates', 'False verdicts of studies without an effect', numbers)
  print(f'largest rate: {max(max(rates.values()) for rates in numbers["false verdicts"].values()):.4f}')


if __name__ == '__main__':
  main()
