"""The report of a study: verdict first, self-contained and safe, also for missing or failed runs."""

import csv
import io
import math
import re
from unittest import mock

import numpy as np
import pytest

from gpt_jax.ablation.stats import analyze, scaling
from gpt_jax.reports import figures, sections, study_figures, study_report, study_results, study_tables
from gpt_jax.runs import records
from tests import ablation_study
from tests.reports.test_run_report import Reader

LOST = ('positions=sinusoidal', 3, 'diverged', 'the gradient was not finite in 20 steps in a row')
KILLED = {'arm': 'base', 'seed': 1, 'how': 'process', 'outcome': 'killed', 'code': -9}
ATTEMPTS = [
  KILLED | {'time': '2026-01-02T01:00:00.000Z', 'message': 'killed by signal 9'},
  {'time': '2026-01-02T02:00:00.000Z', 'arm': 'base', 'seed': 2, 'outcome': 'stopped', 'how': ''},
  {'time': '2026-01-02T02:00:03.000Z', 'arm': 'base', 'seed': 3, 'outcome': 'stopped', 'how': ''},
  {
    'time': '2026-01-02T05:00:00.000Z',
    'arm': 'base',
    'seed': 3,
    'outcome': 'killed',
    'how': '',
    'message': 'the whole study was killed',
  },
]


def build_study(folder, planned, rows, attempts=()):
  """A StudyResults with its real analysis."""
  return study_results.StudyResults(planned, rows, analyze.analyze(planned, rows), list(attempts), folder)


def test_the_largest_differences_of_models_are_listed(tmp_path):
  planned = ablation_study.study(('learned',), seeds=1)
  place = tmp_path / 'runs' / 'positions-learned' / 'seed0'
  place.mkdir(parents=True)
  losses = [{'kind': 'number', 'difference': -0.5, 'error': 0.1, 'share': 0.75}]
  record = {'against': '/elsewhere/runs/base/seed0', 'losses': losses}
  record['activations'] = [{'path': 'blocks/0', 'relative': 0.1}, {'path': 'logits', 'relative': 0.25}]
  record['gradients'] = [{'path': 'embed_VD', 'ratio': 2.0}]
  records.append_line(place / 'against.jsonl', record)
  run = {'arm': 'positions=learned', 'seed': 0, 'folder': 'runs/positions-learned/seed0'}
  study = study_results.StudyResults(planned, [run], {}, [], tmp_path)
  [row] = study_tables.where_table(study).rows
  assert row[1:] == [
    'number \u22120.5000 \u00b1 0.1000 (75%)',
    'logits 0.25\nblocks/0 0.1',
    'embed_VD 2\u00d7',
  ]
  records.append_line(place / 'against.jsonl', {'against': 3})  # not a comparison
  assert study_tables.where_table(study).rows == [row]


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """The study of positions: one arm better, three worse, one equal; a run diverged."""
  folder = tmp_path_factory.mktemp('studies') / 'positions'
  planned = ablation_study.study()
  rows = ablation_study.rows(planned, folder)
  for row in rows:
    if (row['arm'], row['seed']) == LOST[:2]:
      ablation_study.lose(row, *LOST[2:])
  planned['arms'][4]['flags'] = ['changes model.heads too']
  return build_study(folder, planned, rows, ATTEMPTS)


@pytest.fixture(scope='module')
def page(study):
  text = study_report.render_html(study)
  return text, Reader(text)


def to_ascii(text):
  """Replace minus signs and non-breaking spaces."""
  return text.replace('\u2212', '-').replace('\u00a0', ' ')


# --- the page


def test_the_verdict_comes_first(page):
  words = to_ascii(page[1].text())
  head = words[: words.index('Effects')]
  assert 'Which position encoding should a small character model use?' in head
  assert 'positions=alibi beats the baseline (rope)' in head
  order = [head.index(word) for word in ('beats', 'Better', 'Worse', 'runs with a result')]
  assert order == sorted(order)
  worse = head[head.index('Worse') :]
  names = re.findall(r'positions=(\S+) \+0\.\d{3}', worse)
  assert names[:3] == ['learned', 'none', 'sinusoidal']  # the least bad first, then who diverged
  assert 'Diverged positions=sinusoidal' in ' '.join(worse.split())


def test_the_page_is_self_contained(page):
  text, reader = page
  assert 'script' not in reader.tags
  assert 'http' not in text
  assert '@import' not in text
  links = [value for name, value in reader.attributes if name in ('src', 'href', 'xlink:href')]
  assert all(value.startswith(('data:', '#')) for value in links)
  ids = [value for name, value in reader.attributes if name == 'id']
  assert len(ids) == len(set(ids))


def test_samples_and_names_are_escaped(page):
  text, reader = page
  assert '<script' not in text
  assert '<script>alert("x")</script>' in reader.text()
  assert 'positions=nope=a|b' in reader.text()
  assert '\x07' not in text
  text.encode('utf-8')  # no lone surrogates


def test_sections_are_complete_and_in_order(page):
  assert re.findall(r'<h2>([^<]*)</h2>', page[0]) == [
    'Effects',
    'Results',
    'Learning curves',
    'Other measures',
    'Samples',
    'What the arms change',
    'Cost',
    'What went wrong',
    'What did not help',
    'Plan',
    'Reproduce',
  ]


def test_every_table_of_results_states_the_budget(study, page):
  budget = 'equal tokens, 2.46M a run'
  assert page[1].text().count(budget) >= 3
  assert budget in study_report.render_latex(study)
  assert study_report.render_markdown(study).count(budget) == 3
  assert all(row['budget'] == budget for row in csv_rows(study))


def test_failures_are_listed_with_their_causes(study, page):
  words = page[1].text()
  assert '1 of 30 runs have no result: positions=sinusoidal seed 3 (diverged)' in words
  assert 'positions=nope=a|b: changes model.heads too' in words
  assert study_results.failures(study) == [('base', 1, 'done at attempt 2', 'killed by signal 9'), LOST]
  assert all(
    text in words for text in study_results.failures(study)[0][2:] + study_results.failures(study)[1][2:]
  )


def test_interruptions_of_the_study_are_counted_once(study, page):
  assert study_results.count_interruptions(study) == 2  # two workers recorded the first one
  assert 'The study was interrupted twice and resumed.' in page[1].text()


def test_samples_are_the_last_of_the_first_seed(page):
  words = page[1].text()
  assert words.count('seed 0 \u00b7 validation loss') == 6
  assert 'early' not in words


def test_negative_results_are_listed(study, page):
  names = {arm['name'] for arm in study_results.unhelpful_arms(study)}
  assert {'positions=learned', 'positions=none', 'positions=sinusoidal'} <= names
  assert 'positions=alibi' not in names
  words = page[1].text()
  part = words[words.index('What did not help') : words.index('Reproduce')]
  assert all(name in part for name in names)


def test_command_and_data_fingerprint_are_listed(study, page):
  assert study.spec['command'] in page[1].text()
  assert 'feedc0defeedc0de, the same in all runs' in page[1].text()


# --- the words


def headline(verdicts, sign='lower', seeds=3):
  """Return the headline of a study whose arms have these (difference, interval, verdict)."""
  levels = [f'x{i}' for i in range(len(verdicts))]
  planned = ablation_study.study(levels, seeds) | {'better': sign}
  arms = [
    {'name': f'positions={level}', 'mean': 1.7 + d, 'difference': d, 'interval': i, 'verdict': v}
    for level, (d, i, v) in zip(levels, verdicts, strict=True)
  ]
  rows = [{'arm': 'base', 'seed': 0, 'status': 'done', 'result': {}}]
  return to_ascii(study_results.headline(study_results.StudyResults(planned, rows, {'arms': arms})))


def test_the_headline_counts_verdicts():
  worse, same = (0.1, [0.05, 0.15], 'worse'), (0.001, [-0.002, 0.004], 'no difference')
  open_ = (0.02, [-0.1, 0.14], 'undecided')
  better = (-0.03, [-0.04, -0.02], 'better')
  assert headline([worse, same, open_]) == (
    'Nothing beats the baseline (rope): 1 worse, 1 no different within 0.010, 1 undecided.'
  )
  assert headline([open_, open_]) == 'Undecided: no arm could be distinguished from the baseline (rope).'
  assert headline([worse, better]) == (
    'positions=x1 beats the baseline (rope): validation loss 1.670, -0.030 (-0.040 to -0.020). 1 worse.'
  )
  lost = (-0.3, [-0.4, -0.2], 'diverged')
  assert headline([lost, worse]) == 'Nothing beats the baseline (rope): 1 worse, 1 diverged.'


def test_the_headline_leads_with_the_interval_for_all_arms_and_says_what_was_picked(tmp_path):
  """Of arms with one true effect, the mean of the best is too good: see benchmarks/error_rates.py."""
  levels = ('alibi', 'nope=a|b', 'none')
  planned = ablation_study.study(levels)
  study = build_study(tmp_path, planned, ablation_study.rows(planned, tmp_path, samples=False))
  best = study.others[0]
  low, high = (f'{bound:.3f}' for bound in best['family_interval'])
  assert (best['name'], best['verdict']) == ('positions=alibi', 'better')
  assert to_ascii(study_results.headline(study)).startswith(
    f'positions=alibi beats the baseline (rope): validation loss {low} to {high} (95 % for all arms at '
    f'once). Its mean, {best["mean"]:.3f} ({best["difference"]:.3f}), was picked as the best of 3: expect '
    'less.'
  )
  (tmp_path / 'one').mkdir()
  planned = ablation_study.study(('alibi',))
  alone = build_study(tmp_path, planned, ablation_study.rows(planned, tmp_path / 'one', samples=False))
  assert 'expect less' not in study_results.headline(alone)


def test_the_headline_compares_the_best_arm_with_the_second_best(tmp_path):
  planned = ablation_study.study(('alibi', 'nope=a|b', 'none'))
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  for row in rows:
    row['result']['valid_loss'] -= 0.01 * (row['arm'] == 'positions=nope=a|b')
  study = build_study(tmp_path, planned, rows)

  def told(verdict):
    analysis = {'runner_up': study.analysis['runner_up'] | {'verdict': verdict}}
    return to_ascii(study_results.runner_up(study_results.StudyResults(planned, rows, analysis)))

  assert study.analysis['runner_up']['arms'] == ['positions=alibi', 'positions=nope=a|b']
  assert to_ascii(study_results.headline(study)).endswith(told('better'))
  assert re.match(r' It also beats the next best, positions=nope=a\|b: -0\.0\d\d \(-0\.', told('better'))
  assert told('undecided').startswith(' It is not shown to beat the next best, positions=nope=a|b: -0.0')
  assert told('no difference').startswith(' It is no different from the next best')
  assert told('not comparable') == ' It is not comparable to the next best, positions=nope=a|b.'


def test_doubts_are_in_every_format(tmp_path):
  planned = ablation_study.study(('alibi',), seeds=8)
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  next(row for row in rows if row['arm'] == 'positions=alibi')['result']['valid_loss'] -= 3.0
  study = build_study(tmp_path, planned, rows)
  [arm] = study.others
  assert arm['verdict'] == 'undecided' and arm['doubt'].startswith('sign flips give p = 0.0078')
  for render in (study_report.render_html, study_report.render_markdown):
    assert 'in doubt: sign flips give p = 0.0078' in render(study)
  assert csv_rows(study)[1]['p_sign_flip'] == '0.0078125'
  assert 'undecided, in doubt' in study_report.render_latex(study)


def test_times_of_several_machines_are_not_shown_as_if_they_compared(tmp_path):
  planned = ablation_study.study(('alibi',))
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  shown = lambda: study_report.render_markdown(build_study(tmp_path, planned, rows))
  assert 'do not compare' not in shown()
  rows[-1]['result']['hardware'] = '8 x gpu'
  assert 'Times of runs on 2 x cpu and 8 x gpu do not compare.' in shown()


def test_the_best_arm_has_the_highest_metric_if_higher_is_better():
  small, large = (0.02, [0.01, 0.03], 'better'), (0.05, [0.04, 0.06], 'better')
  assert headline([small, large], 'higher').startswith('positions=x1 beats')
  assert headline([(-d, [-h, -l], v) for d, (l, h), v in (small, large)]).startswith('positions=x1')


def test_digits_show_a_tenth_of_the_tolerance():
  for tolerance, places in ((0.01, 3), (0.5, 2), (5, 1), (50, 0), (1e-4, 5), (0, 3)):
    assert study_results.StudyResults({'tolerance': tolerance}, []).places == places


# --- Markdown, CSV, LaTeX


def csv_rows(study):
  return list(csv.DictReader(io.StringIO(study_tables.to_csv(study))))


def test_csv_has_every_number_in_full(study):
  rows = {row['arm']: row for row in csv_rows(study)}
  assert list(rows)[0] == 'base'
  for arm in study.arms:
    row = rows[arm['name']]
    assert math.isclose(float(row['mean']), arm['mean'], rel_tol=1e-9)
    for seed, value in arm['values'].items():
      assert math.isclose(float(row[f'seed {seed}']), value, rel_tol=1e-9)
    if not arm['is_baseline']:
      bounds = float(row['low']), float(row['high'])
      assert bounds == pytest.approx(tuple(arm['interval']), rel=1e-9)
  assert rows['positions=sinusoidal']['seed 3'] == ''


def test_markdown_tables_have_equal_rows(study):
  blocks = re.findall(r'(?:^\|.*\n)+', study_report.render_markdown(study), re.MULTILINE)
  assert len(blocks) >= 4
  for block in blocks:
    counts = {len(re.findall(r'(?<!\\)\|', line)) for line in block.splitlines()}
    assert len(counts) == 1, block
  assert r'positions=nope=a\|b' in blocks[0]


def test_latex_escapes_and_balances(study):
  text = study_report.render_latex(study)
  columns = re.search(r'\\begin\{tabular\}\{(\w+)\}', text).group(1)
  body = text[text.index('\\toprule') : text.index('\\bottomrule')]
  lines = [line for line in body.splitlines() if line.endswith(r'\\')]
  assert len(lines) == 7
  assert {len(re.findall(r'(?<!\\)&', line)) for line in lines} == {len(columns) - 1}
  assert text.isascii()
  assert sections.escape_latex('a_b & 5 % {x} #1 $ \\ ~ ^') == (
    r'a\_b \& 5 \% \{x\} \#1 \$ \textbackslash{} \textasciitilde{} \textasciicircum{}'
  )


# --- curves


def test_a_common_grid_pairs_curves_of_different_lengths():
  a = (np.array([0.0, 50, 100]), np.array([3.0, 2, 1]))
  b = (np.array([0.0, 40, 80]), np.array([4.0, 3.2, 2.4]))
  x, y = study_figures.on_common_grid([a, b])
  assert x[0] >= 8 and x[-1] == 80  # a tenth of the shorter one is left out
  assert np.allclose(y[0], 3 - x / 50)
  assert np.allclose(y[1], 4 - x / 50)


def test_a_run_without_a_result_does_not_shorten_the_curves(study):
  assert sorted(study_figures.curves_of(study, 'positions=sinusoidal')) == [0, 1, 2, 4]


def test_curves_have_the_units_of_the_job():
  of = lambda metric, **counts: study_figures.units(
    study_results.StudyResults({'metric': metric}, [{'result': {}}, {'result': counts}])
  )
  assert of('valid_loss', tokens=9) == of('valid_loss') == ('tokens', 'nats per token')
  assert of('valid_loss', images=9) == ('steps', 'squared pixel error')
  assert of('valid_loss', crops=9) == ('steps', 'log-mel RMSE of all frames')
  assert of('psnr', images=9) == ('steps', 'psnr')


# --- crossed factors and sizes


def crossed(folder):
  """A full plan of two factors with two levels; the second one matters."""
  planned = ablation_study.study(()) | {'sweep': 'full', 'factors': {'norm': [0], 'mlp': [0]}}
  arms = []
  for norm, mlp in (('rms', 'relu2'), ('rms', 'gelu'), ('layer', 'relu2'), ('layer', 'gelu')):
    base = (norm, mlp) == ('rms', 'relu2')
    name = 'base' if base else f'norm={norm},mlp={mlp}'
    levels = {'norm': norm, 'mlp': mlp}
    arms.append(
      ablation_study.arm('rope', base)
      | {'name': name, 'slug': name, 'levels': levels | {'positions': 'rope'}}
    )
  rows = [
    ablation_study.row(
      arm,
      seed,
      folder,
      0.05 * (arm['levels']['mlp'] == 'gelu'),
      np.random.default_rng((i, seed)),
      samples=False,
    )
    for i, arm in enumerate(arms)
    for seed in planned['seeds']
  ]
  return build_study(folder, planned | {'arms': arms}, rows)


def test_main_effects_have_their_own_forest(tmp_path):
  text = to_ascii(Reader(study_report.render_html(crossed(tmp_path))).text())
  part = text[text.index('Main effects') : text.index('Results')]
  assert 'mlp=gelu' in part
  assert re.search(r'\+0\.0[45]\d \(', part)
  study = crossed(tmp_path / 'again')
  assert re.search(r'\| mlp=gelu against relu2 \| \+0\.0', to_ascii(study_report.render_markdown(study)))


def sized(folder):
  """Two encodings at three sizes; what helps the small ones harms the large one."""
  planned = ablation_study.study(()) | {'factors': {'size': ['s', 'm', 'l'], 'positions': ['r']}}
  arms, rows = [], []
  for i, (size, parameters) in enumerate({'s': 1e5, 'm': 4e5, 'l': 1.6e6}.items()):
    for level, gain in (('rope', 0.0), ('alibi', (-0.1, -0.02, 0.1)[i])):
      base = (size, level) == ('s', 'rope')
      name = 'base' if base else f'size={size},positions={level}'
      levels = {'size': size, 'positions': level}
      arm = ablation_study.arm(level, base) | {'parameters': int(parameters), 'slug': name}
      arms.append(arm | {'name': name, 'levels': levels})
      rows += [
        ablation_study.row(
          arms[-1],
          seed,
          folder,
          2 * (parameters / 1e5) ** -0.4 + gain,
          np.random.default_rng((len(arms), seed)),
          samples=False,
        )
        for seed in range(4)
      ]
  sizes = np.geomspace(1e5, 1.6e7, 40)
  losses = 1.6 + 2 * (sizes / 1e5) ** -0.4
  curve = np.stack([sizes, losses, losses - 0.05, losses + 0.08], 1).tolist()
  law = {'E': 1.6, 'A': 200.0, 'alpha': 0.4, 'curve': curve, 'intervals': {'alpha': [0.35, 0.46]}}
  with mock.patch.object(scaling, 'power_law', lambda *_: law):  # these numbers
    return build_study(folder, planned | {'arms': arms, 'seeds': [0, 1, 2, 3]}, rows)


def test_sizes_have_their_law_and_a_warning_if_an_effect_changes_sign(tmp_path):
  text = to_ascii(Reader(study_report.render_html(sized(tmp_path))).text())
  assert 'changes sign with size' in text[: text.index('Effects')]
  part = text[text.index('Scaling') : text.index('Results')]
  assert part.count('L = 1.6 + 200 / N^0.4 (0.35 to 0.46)') == 2
  assert 'positions=alibi at l' in part
  study = sized(tmp_path)
  assert to_ascii(study_results.headline(study)) == (
    'Validation loss over parameters: L = 1.6 + 200 / N^0.4 (0.35 to 0.46). '
    'positions=alibi: better at s, m; worse at l.'
  )
  text = study_report.render_markdown(study)
  assert all(line in text for line in ('## Scaling', '- positions=alibi: L = 1.6', ' at l |'))


def test_a_law_is_drawn_with_the_runs_that_it_is_fitted_to(tmp_path, monkeypatch):
  study, drawn = sized(tmp_path), []
  monkeypatch.setattr(figures, 'chart', lambda series, **options: drawn.append(series) or '')
  study.arms[-1]['levels']['tokens'] = 'more'
  study_figures.law_figures(study, study.analysis['scaling']['laws'])
  dots = [[len(one.x) for one in series if one.mark == 'dots'] for series in drawn]
  assert dots and all(counts == [12, 8] for counts in dots)  # of three sizes and four seeds


def test_laws_of_sizes_and_tokens_are_on_the_page_and_in_markdown(tmp_path):
  planned = ablation_study.study((), seeds=1)
  arms = planned['arms']
  best = {'parameters': 2e5, 'tokens': 4e6, 'flops': 5e12, 'inside': False}
  law = {'E': 1.2, 'A': 30.0, 'alpha': 0.3, 'B': 60.0, 'beta': 0.35, 'intervals': None}
  budget = {'flops': 1e12, 'parameters': 3e5, 'loss': 1.5, 'inside': True}
  flat = {'budgets': [budget], 'exponent': 0.5, 'interval': [0.4, 0.6], 'notes': ['one had none']}
  scaled = {'laws': {}, 'parametric': {'': law | {'optimum': best}}, 'isoflop': {'': flat}}
  analysis = {'arms': arms, 'scaling': scaled | {'effects': [], 'warnings': []}}
  study = study_results.StudyResults(planned, [], analysis)
  for text in (Reader(study_report.render_html(study)).text(), study_report.render_markdown(study)):
    assert 'L = 1.2 + 30 / N^0.3 + 60 / D^0.35; best at 5e+12 FLOPs: 200k parameters' in text
    assert 'beyond the sizes tried' in text
    assert '300k parameters at 1e+12 FLOPs; best N grows as FLOPs^0.5 (0.4 to 0.6)' in text
    assert 'one had none' in text


def test_tokens_and_replicas_come_from_the_results(tmp_path):
  planned = ablation_study.study((), seeds=3)
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  for row in rows:
    row['result'] |= {'tokens': 123_456, 'replicas': 1 + row['seed'] % 2}
  study = build_study(tmp_path, planned, rows)
  text = Reader(study_report.render_html(study)).text()
  assert '1 run 2 together, 2 runs alone' in text
  assert dict(study_report.key_numbers(study))['tokens a run'] == '123k'


# --- what is missing


def test_a_study_without_runs_has_a_report(tmp_path):
  planned = ablation_study.study(seeds=1)
  ablation_study.write(tmp_path, planned)
  study = study_results.read_study(tmp_path)
  path = study_report.write_report(tmp_path)
  text = Reader(path.read_text()).text()
  assert 'Nothing has been measured yet.' in text
  assert '6 of 6 runs are not done yet' in text
  assert 'time of all runs' not in dict(study_report.key_numbers(study))
  assert {p.name for p in tmp_path.glob('report.*')} == {
    'report.html',
    'report.md',
    'report.csv',
    'report.tex',
  }


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
  planned = ablation_study.study(seeds=1)
  study = build_study(tmp_path, planned, ablation_study.rows(planned, tmp_path))
  text = Reader(study_report.render_html(study)).text()
  assert 'Undecided: no arm could be distinguished from the baseline (rope).' in text
  assert '\u00b1' not in study_report.render_latex(study)
  assert 'nan' not in (text + study_report.render_markdown(study) + study_tables.to_csv(study)).lower()


def test_an_unfinished_study_reports_its_progress(tmp_path):
  planned = ablation_study.study()
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  for row in rows:
    if row['seed'] > 2:
      ablation_study.lose(row, 'missing', 'it has not begun')
  study = build_study(tmp_path, planned, rows)
  assert study_results.headline(study).startswith('After 18 of 30 runs: ')
  assert study_results.failures(study) == []
  assert '12 of 30 runs are not done yet' in Reader(study_report.render_html(study)).text()


def test_a_failed_baseline_leaves_out_the_effects(tmp_path):
  planned = ablation_study.study()
  rows = ablation_study.rows(planned, tmp_path)
  for row in rows:
    if row['arm'] == 'base':
      ablation_study.lose(row, 'failed', 'RuntimeError: no memory\nTraceback ...')
  study = build_study(tmp_path, planned, rows)
  text = study_report.render_html(study)
  assert '<h2>Effects' not in text
  assert study_results.failures(study)[0][3] == 'RuntimeError: no memory'
  assert 'Traceback' not in text


def test_a_torn_line_of_attempts_is_skipped(tmp_path):
  ablation_study.write(tmp_path, ablation_study.study(seeds=1), ATTEMPTS[:1])
  with open(tmp_path / 'attempts.jsonl', 'a') as file:
    file.write('{"time": "20\n')
  records.append_line(tmp_path / 'attempts.jsonl', ATTEMPTS[1])
  assert study_results.read_study(tmp_path).attempts == ATTEMPTS[:2]


def test_a_folder_without_a_study_is_an_error_with_a_fix(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no study\.json\nfix: '):
    study_report.write_report(tmp_path)


def test_names_are_shown_as_they_are_in_every_format(tmp_path):
  name, planned = 'x=$a_1$ *b* <i> _c_ `d`|e\\f', ablation_study.study(('learned',), seeds=2)
  planned['arms'][1]['name'], planned['question'] = name, '# Does *it* help?'
  study = build_study(tmp_path, planned, ablation_study.rows(planned, tmp_path, samples=False))
  page, markdown = study_report.render_html(study), study_report.render_markdown(study)
  assert Reader(page).text().count(name) > 5 and 'mathdefault' not in page
  assert markdown.count(r'x=\$a_1\$ \*b\* \<i> \_c\_ \`d\`\|e\\f') > 5
  assert name[:8] not in markdown and r'\# Does \*it\* help?' in markdown
  assert r'x=\$a\_1\$ *b* $<$i$>$ \_c\_ `d`|e\textbackslash{}f' in study_report.render_latex(study)


def test_runs_of_several_commits_are_named(tmp_path):
  planned = ablation_study.study(seeds=2)
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  for row in rows:
    row['result']['versions'] = {'git': 'a' * 40, 'jax': '0.10.2', 'command': f'x --workdir={row["arm"]}'}
  assert list(study_results.differing_versions(build_study(tmp_path, planned, rows))) == []
  changed = {'git': 'a' * 40 + ' with uncommitted changes', 'uncommitted': 'c0ffee', 'jax': '0.10.3'}
  changed |= {'redacted': '1 line redacted (a token)'}  # of the uncommitted changes, not a package
  rows[0]['result']['versions'] = changed
  study = build_study(tmp_path, planned, rows)
  commits = f'{"a" * 12} (11 runs), {"a" * 12} with uncommitted changes c0ffee (1 run)'
  for text in (study_report.render_markdown(study), Reader(study_report.render_html(study)).text()):
    assert f'The runs differ in the commit of the code: {commits}.' in text
    assert 'The runs differ in the version of jax: 0.10.2 (11 runs), 0.10.3 (1 run).' in text


def test_all_measures_are_shown_however_many(tmp_path):
  planned = ablation_study.study(('learned',), seeds=1)
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  for row in rows:
    row['result']['evaluations'] = [{'task': 'answer', 'metric': f'm{k}', 'value': 0.5} for k in range(30)]
  table = study_tables.measures_table(build_study(tmp_path, planned, rows))
  assert [row[0] for row in table.rows][-30:] == [f'answer/m{k}' for k in range(30)]
  assert list(table.header) == ['measure', '>base (rope)', '>positions=learned']


def test_two_stops_within_a_minute_are_two(study):
  stops = [{'time': f'2026-01-02T02:00:{s:02}.000Z', 'outcome': 'stopped'} for s in (0, 1, 40, 41)]
  other = study_results.StudyResults(study.spec, [], None, stops)
  assert study_results.count_interruptions(other) == 2


# --- the forest plot


def test_an_effect_far_beyond_the_others_gets_an_arrow():
  near = [figures.Effect(f'a{i}', 0.01 * i, (0.01 * i - 0.01, 0.01 * i + 0.01)) for i in range(5)]
  far = figures.Effect('far', 3.0, (2.9, 3.1), text='+3.000')
  low, high = figures.forest_limits([*near, far], 0.01)
  assert low < -0.01
  assert 0.05 < high < 0.1
  svg = figures.forest([*near, far], name='f', label='x', width=1000, equal=0.01)
  assert '+3.000' in svg
  assert figures.forest([], name='f', label='x', width=1000) == ''
  none = figures.Effect('n', math.nan)
  assert figures.forest([none], name='f', label='x', width=1000) == ''
