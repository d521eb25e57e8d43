"""Scaling laws: known laws are recovered, intervals cover them; effects that change sign."""

import json

import numpy as np
import pytest
from scipy import optimize

from gpt_jax.ablation.stats import analyze, scaling, scores, size_laws
from gpt_jax.reports import study_results

CHINCHILLA = {'E': 1.69, 'A': 406.4, 'alpha': 0.34, 'B': 410.7, 'beta': 0.28}  # Hoffmann et al.
SIZES = np.array([1e5, 3e5, 1e6, 3e6])


def test_a_power_law_is_recovered_exactly():
  law = scaling.power_law(SIZES, 1.2 + 30.0 * SIZES**-0.3, draws=0)
  assert law['E'] == pytest.approx(1.2, rel=1e-4)
  assert law['A'] == pytest.approx(30.0, rel=1e-3)
  assert law['alpha'] == pytest.approx(0.3, rel=1e-4)
  assert law['intervals'] is None
  np.testing.assert_allclose(law['curve'][-1][1], 1.2 + 30.0 * 3e7**-0.3, rtol=1e-3)


def test_the_fit_reaches_the_minimum_of_another_optimizer():
  rng = np.random.default_rng(0)
  sizes, tokens = rng.uniform(1, 5, size=(2, 30))
  losses = 1.2 + sizes**-0.5 + tokens**-0.8 + 0.01 * rng.normal(size=30)
  logs = [np.log(sizes), np.log(tokens)]
  value = lambda law: scaling.huber_loss(law, logs, losses)
  starts = sorted(scaling._starts(logs, losses), key=value)[: scaling.REFINED_STARTS]
  fits = [scaling._minimize(start, logs, losses).x for start in starts]
  best = min(map(value, fits))
  start = min(fits, key=value) + 0.01
  options = {'maxiter': 20000, 'maxfev': 20000, 'xatol': 1e-10, 'fatol': 1e-10}
  other = optimize.minimize(value, start, method='Nelder-Mead', options=options)
  assert best <= other.fun * (1 + 1e-6)


@pytest.mark.slow  # in the fast set: one interval below
def test_intervals_cover_the_truth_about_as_often_as_they_say():
  rng, hits = np.random.default_rng(0), []
  sizes, seeds = np.repeat(SIZES, 8), np.tile(np.arange(8), 4)
  for _ in range(40):
    losses = 1.2 + 30.0 * sizes**-0.3 + 0.002 * rng.normal(size=32)
    low, high = scaling.power_law(sizes, losses, seeds, draws=100)['intervals']['alpha']
    hits.append(low <= 0.3 <= high)
  assert 0.8 <= np.mean(hits) <= 0.99


def test_fewer_than_five_seeds_give_a_law_and_no_interval():
  sizes, seeds = np.repeat(SIZES, 5), np.tile(np.arange(5), 4)
  losses = 1.2 + 30.0 * sizes**-0.3 + 0.01 * np.random.default_rng(0).normal(size=20)
  low, high = scaling.power_law(sizes, losses, seeds)['intervals']['alpha']
  assert low <= 0.3 <= high
  few = seeds < 4
  assert scaling.power_law(sizes[few], losses[few], seeds[few])['intervals'] is None
  flops = np.full(20, 1e9)
  flops[10:] = 2e9
  size = np.tile(np.repeat([1e5, 2e5, 4e5], 5)[:10], 2)  # two budgets of two sizes: no minimum
  assert scaling.isoflop(flops, size, losses, seeds)['interval'] is None


def test_a_law_is_asked_for_a_size_that_it_has_not_seen():
  sizes, seeds = np.repeat(SIZES, 5), np.tile(np.arange(5), 4)
  noise = 0.002 * np.random.default_rng(0).normal(size=20)
  held_out = scaling.predict_largest(sizes, 1.2 + 30.0 * sizes**-0.3 + noise, seeds)
  truth = 1.2 + 30.0 * 3e6**-0.3
  assert held_out['size'] == 3e6
  assert held_out['measured'] == pytest.approx(truth, abs=0.003)
  low, high = held_out['interval']
  assert low < held_out['predicted'] < high
  assert low < truth < high
  surprise = np.where(sizes == 3e6, 0.5, 0.0)  # what the largest size does is no part of the fit
  other = scaling.predict_largest(sizes, 1.2 + 30.0 * sizes**-0.3 + noise + surprise, seeds)
  assert other['predicted'] == held_out['predicted']
  assert other['measured'] == pytest.approx(held_out['measured'] + 0.5)
  assert scaling.predict_largest(sizes[:15], np.ones(15), seeds[:15]) is None


def test_one_outlier_hardly_moves_a_law():
  sizes = np.geomspace(1e5, 1e7, 12)
  losses = 1.2 + 30.0 * sizes**-0.3
  losses[5] *= 1.3
  assert scaling.power_law(sizes, losses, draws=0)['alpha'] == pytest.approx(0.3, rel=0.02)


def test_the_chinchilla_law_is_recovered_and_extrapolates():
  sizes, tokens = (x.ravel() for x in np.meshgrid(np.geomspace(5e7, 1e10, 6), np.geomspace(1e9, 3e11, 6)))
  rng = np.random.default_rng(1)
  losses = scaling.predict(CHINCHILLA, sizes, tokens) * np.exp(0.001 * rng.normal(size=36))
  law = scaling.parametric(sizes, tokens, losses, draws=30)
  for key in ('E', 'alpha', 'beta'):
    assert law[key] == pytest.approx(CHINCHILLA[key], rel=0.05)
    low, high = law['intervals'][key]
    assert low < law[key] < high
  far = scaling.predict(law, 7e10, 1.4e12)
  assert far == pytest.approx(scaling.predict(CHINCHILLA, 7e10, 1.4e12), rel=0.005)


def test_the_optimum_is_the_minimum_at_equal_flops():
  best = scaling.optimum(CHINCHILLA, 5.76e23)
  assert 6 * best['parameters'] * best['tokens'] == pytest.approx(5.76e23)
  sizes = np.geomspace(1e9, 1e12, 4001)
  losses = scaling.predict(CHINCHILLA, sizes, 5.76e23 / 6 / sizes)
  assert best['parameters'] == pytest.approx(sizes[losses.argmin()], rel=0.01)


def test_isoflop_parabolas_give_the_exponent_of_the_law():
  law = CHINCHILLA | {'alpha': 0.3, 'beta': 0.3}  # optimal N then goes as the root of FLOPs
  flops, sizes, losses = [], [], []
  for budget in (1e18, 1e19, 1e20, 1e21):
    around = scaling.optimum(law, budget)['parameters'] * np.geomspace(0.4, 2.5, 7)
    flops += [budget] * 7
    sizes += around.tolist()
    losses += scaling.predict(law, around, budget / 6 / around).tolist()
  actual = scaling.isoflop(flops, sizes, losses, draws=100)
  assert actual['exponent'] == pytest.approx(0.5, abs=0.01)
  assert actual['interval'][0] <= 0.5 + 0.01 and actual['interval'][1] >= 0.5 - 0.01
  assert len(actual['budgets']) == 4 and not actual['notes']


def test_a_minimum_outside_the_sizes_is_noted_and_not_used():
  sizes = [1e6, 2e6, 4e6] * 2
  flops = [1e15] * 3 + [1e16] * 3
  actual = scaling.isoflop(flops, sizes, [2.0, 1.9, 1.95, 2.0, 1.8, 1.7])
  assert [one['inside'] for one in actual['budgets']] == [True, False]
  assert actual['exponent'] is None
  assert '1e+16 FLOPs' in actual['notes'][0]


@pytest.mark.parametrize(
  ('fit', 'message'),
  [
    (lambda: scaling.power_law([1e5, 1e6], [2.0, 1.0]), '2 sizes do not determine'),
    (lambda: scaling.power_law(SIZES, [3.0, 2.0, 1.0, 0.0]), 'not positive'),
    (lambda: scaling.parametric(SIZES, 20 * SIZES, [4.0, 3.0, 2.0, 1.0]), 'rise in step'),
  ],
)
def test_unfittable_points_are_errors(fit, message):
  with pytest.raises(ValueError, match=rf'{message}[\s\S]*\nfix: '):
    fit()


# ----------------------------------------------------------------------------------------- rungs


def scaled_study(cells, factors):
  """A study of arms (levels, parameters, tokens); the first is the baseline."""
  study = {'metric': 'valid_loss', 'better': 'lower', 'tolerance': 0.005, 'sweep': 'full', 'factors': factors}
  keys = ('levels', 'parameters', 'tokens')
  arms = [dict(zip(keys, cell, strict=True)) for cell in cells]
  for arm in arms:
    name = ','.join(f'{factor}={level}' for factor, level in arm['levels'].items())
    arm |= {'name': name, 'is_baseline': arm is arms[0], 'flops_per_token': 6 * arm['parameters']}
  return study | {'arms': arms}


def norm_study(effects, own=0.001, seeds=5):
  """Four sizes by two levels of norm, and their rows; the effect of norm=b is a number for each size."""
  cells = [({'size': f's{i}', 'norm': norm}, float(SIZES[i]), 1e6) for i in range(4) for norm in 'ab']
  study, rows = scaled_study(cells, {'size': [], 'norm': []}), []
  rng = np.random.default_rng(0)
  of_seed = 0.02 * rng.normal(size=seeds)
  for k, arm in enumerate(study['arms']):
    for seed in range(seeds):
      loss = 1.2 + 30.0 * arm['parameters'] ** -0.3 + of_seed[seed] + own * rng.normal()
      result = {'valid_loss': loss + effects[k // 2] * (k % 2), 'parameters': arm['parameters']}
      rows.append({'arm': arm['name'], 'seed': seed, 'status': 'done', 'curve': [], 'result': result})
  return study, rows


def test_a_size_study_gives_laws_and_effects_at_each_size():
  """Arms of another size than the baseline are judged there alone."""
  analysis = analyze.analyze(*norm_study([-0.05, -0.03, -0.02, -0.02]))
  fits = analysis['scaling']
  assert set(fits['laws']) == {'norm=a', 'norm=b'}
  law = fits['laws']['norm=a']
  assert law['alpha'] == pytest.approx(0.3, abs=0.05)
  assert law['intervals']['alpha'][0] < 0.3 < law['intervals']['alpha'][1]
  held_out = law['held_out']
  assert held_out['predicted'] == pytest.approx(held_out['measured'], abs=0.01)
  assert f'it predicts {held_out["predicted"]:.3f} (' in study_results.law_text('', law)
  assert [effect['size'] for effect in fits['effects']] == ['s0', 's1', 's2', 's3']
  assert {effect['verdict'] for effect in fits['effects']} == {'better'}
  assert fits['warnings'] == []
  json.dumps(fits, allow_nan=False)
  verdicts = {arm['name']: arm['verdict'] for arm in analysis['arms']}
  assert verdicts.pop('size=s0,norm=a') == 'baseline'
  assert verdicts.pop('size=s0,norm=b') == 'better'
  assert set(verdicts.values()) == {'not judged'}
  assert analysis['family'] == 5  # norm=b at each size, and its main effect
  assert [effect['factor'] for effect in analysis['effects']] == ['norm']


@pytest.mark.parametrize(
  'effects, own, warning',
  [
    ([-0.05, -0.02, 0.0, 0.03], 0.001, 'norm=b changes sign with size: better at s1, worse at s3'),
    ([0.0, 0.0, 0.0, 0.0], 0.0005, ''),
  ],
)
def test_an_effect_that_changes_sign_is_a_warning(effects, own, warning):
  study, rows = norm_study(effects, own)
  warnings = analyze.analyze(study, rows)['scaling']['warnings']
  assert len(warnings) == bool(warning) and warning in ''.join(warnings)


def fit_law(law, cells):
  """Fit a study of (levels, parameters, tokens) with losses of this law."""
  study = scaled_study(cells, {'size': [], 'tokens': []})
  predict = lambda arm: float(scaling.predict(law, arm['parameters'], arm['tokens']))
  values = {arm['name']: {'0': predict(arm)} for arm in study['arms']}
  return study, size_laws.fit_size_study(study, scores.Scores(values, {}, {}))


def test_varying_sizes_and_tokens_give_the_parametric_law():
  law = {'E': 1.2, 'A': 30.0, 'alpha': 0.3, 'B': 60.0, 'beta': 0.35}
  cells = [({'size': size, 'tokens': t}, size, t) for size in SIZES for t in (1e6, 4e6, 1.6e7)]
  study, fits = fit_law(law, cells)
  assert fits['parametric']['']['alpha'] == pytest.approx(0.3, rel=0.02)
  assert fits['parametric']['']['beta'] == pytest.approx(0.35, rel=0.02)
  assert len(fits['laws']) == 1
  best = fits['parametric']['']['optimum']
  assert best['flops'] == max(arm['flops_per_token'] * arm['tokens'] for arm in study['arms'])
  assert 6 * best['parameters'] * best['tokens'] == pytest.approx(best['flops'])


def test_sizes_at_equal_flops_give_the_optimal_size():
  law, cells = {'E': 1.2, 'A': 30.0, 'alpha': 0.3, 'B': 30.0, 'beta': 0.3}, []  # optimal N = D
  for flops in (6e12, 6e13):
    for part in (0.25, 0.5, 1.0, 2.0, 4.0):
      size = (flops / 6) ** 0.5 * part
      tokens = 1.01 * flops / 6 / size if part == 2.0 else flops / 6 / size  # steps are whole
      cells.append(({'size': part, 'tokens': flops}, size, tokens))
  fit = fit_law(law, cells)[1]['isoflop']['']
  assert [budget['parameters'] for budget in fit['budgets']] == pytest.approx([1e6, 10**6.5], rel=0.1)
  assert fit['exponent'] == pytest.approx(0.5, abs=0.02)


def test_a_study_without_sizes_has_no_scaling():
  assert size_laws.fit_size_study({'factors': {'norm': ['a', 'b']}}, scores.Scores({}, {}, {})) is None
