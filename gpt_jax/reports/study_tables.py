"""The result of a study as Markdown, CSV and LaTeX: for a page of notes, a program, a paper."""

import csv
import io
import math
import re

from gpt_jax.reports import page, study_results
from gpt_jax.runs import loggers

# What LaTeX would take for a command.
LATEX = {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '\u2212': '$-$',
  '\u00d7': r'$\times$',
  '\u00b1': r'$\pm$',
  '\u2192': r'$\to$',
  '\u2026': r'\dots{}',
  '<': '$<$',
  '>': '$>$',
  **{character: f'\\{character}' for character in '&%$#_{}'},
}


def results(study):
  """The table of results: [(name, mean, n, difference, interval, bootstrap, p, verdict)] as texts.

  Args:
    study: a StudyResults.
  """
  rows = []
  for arm in study.arms():
    base, places = arm.get('is_baseline'), study.places
    mean = study_results.format_value(study_results.number(arm, 'mean'), places)
    spread = study_results.format_value(study_results.number(arm, 'sd'), places)
    seeds, planned = int(study_results.number(arm, 'n', 0)), len(study.spec.get('seeds', ()))
    rows.append(
      (
        study_results.label(arm),
        f'{mean} \u00b1 {spread}' if mean and spread else mean,
        f'{seeds}' if seeds == planned else f'{seeds} of {planned}',
        '' if base else study.difference(study_results.number(arm, 'difference')),
        '' if base else study.interval(arm.get('interval')),
        '' if base else study.interval(arm.get('bootstrap')),
        '' if base else study_results.probability(study_results.number(arm, 'p_holm')),
        'baseline' if base else arm.get('verdict') or 'undecided',
      )
    )
  return rows


def results_head(study):
  """Names of the columns of `results`; '>' is right-aligned."""
  mean = f'>{study.metric} \u00b1 sd'
  intervals = ('>95 % interval', '>bootstrap')
  return ('arm', mean, '>seeds', '>difference', *intervals, '>p (Holm)', 'verdict')


def costs(study):
  """[(name, parameters, FLOPs a token, tokens, time of a run, tokens/s, speedup)] as texts."""

  def show(arm, key, how):
    value = study_results.number(arm, key)
    return '' if math.isnan(value) else how(value)

  return [
    (
      study_results.label(arm),
      show(arm, 'parameters', loggers.human),
      show(arm, 'flops_per_token', loggers.human),
      show(arm, 'tokens', loggers.human),
      show(arm, 'seconds', brief),
      show(arm, 'tokens_per_second', loggers.human),
      '' if arm.get('is_baseline') else show(arm, 'speedup', study_results.times),
    )
    for arm in study.arms()
  ]


def brief(seconds):
  """'0.42 s', '31 s', '2:05'."""
  return f'{seconds:.2g} s' if seconds < 100 else loggers.duration(seconds)


COSTS_HEAD = (
  'arm',
  '>parameters',
  '>FLOPs/token',
  '>tokens a run',
  '>time a run',
  '>tokens/s',
  '>effective speedup',
)


# ------------------------------------------------------------------------------------ Markdown


def grid(head, rows):
  """A Markdown table; '' without rows."""
  if not rows:
    return ''
  line = lambda cells: '| ' + ' | '.join(_cell(cell) for cell in cells) + ' |'
  sides = '|' + '|'.join('---:' if name.startswith('>') else '---' for name in head) + '|'
  return '\n'.join([line(name.lstrip('>') for name in head), sides, *map(line, rows)]) + '\n'


def _cell(text):
  return loggers.printable(str(text)).replace('\n', ' ').replace('|', '\\|')


def to_markdown(study):
  """The whole report in Markdown, but its figures and samples."""
  said = [f'# {study.name}', study.spec.get('question', ''), f'**{study.headline()}**']
  said += ['\n'.join(f'- {study.sentence(arm)}' for arm in study.others())]
  said += [
    '## Results',
    study.protocol(),
    grid(*page.drop_empty_columns(results_head(study), results(study))),
  ]
  said += ['\n'.join(f'- {note}' for note in study.analysis.get('notes', ()))]
  if effects := study.analysis.get('effects'):
    named = [(f'{one["factor"]}={one["level"]} against {one["against"]}', one) for one in effects]
    said += ['## Main effects', judged(study, 'level', named)]
  if found := study.analysis.get('scaling'):
    named = [(f'{one["levels"]} at {one["size"]}', one) for one in found['effects']]
    said += ['## Scaling', '\n'.join(f'- {text}' for text in study.laws())]
    said += [judged(study, 'effect', named), '\n'.join(f'- {w}' for w in found['warnings'])]
  said += ['## Cost', f'Budget: {study.budget()}.', grid(*page.drop_empty_columns(COSTS_HEAD, costs(study)))]
  differences = [
    (arm['name'], ', '.join(changes(arm)) or 'nothing', '; '.join(arm.get('flags', ())))
    for arm in study.others()
  ]
  said += ['## What the arms change', grid(*page.drop_empty_columns(('arm', 'config', 'flags'), differences))]
  if failures := study.failures():
    said += ['## What went wrong', grid(('arm', '>seed', 'outcome', 'why'), failures)]
  if unhelpful_arms := study.unhelpful_arms():
    said += ['## What did not help', '\n'.join(f'- {study.sentence(arm)}' for arm in unhelpful_arms)]
  versions = study.spec.get('versions', {}).items()
  versions = ', '.join(f'{k} {v}' for k, v in versions if v and k != 'command')
  command = study.spec.get('command', '')
  said += ['## Reproduce', f'```\n{command}\n```' if command else '', versions]
  return '\n\n'.join(part.strip('\n') for part in said if part) + '\n'


def judged(study, what, named):
  """A Markdown table of [(name, what inference.judge says)]."""
  rows = [
    (
      name,
      study.difference(study_results.number(one, 'difference')),
      study.interval(one['interval']),
      study_results.probability(study_results.number(one, 'p_holm')),
      one['verdict'],
    )
    for name, one in named
  ]
  return grid((what, '>difference', '>95 % interval', '>p (Holm)', 'verdict'), rows)


def changes(arm):
  """['model.positions: rope -> learned', ...] of one arm."""
  return [
    f'{key}: {page.literal(old)} \u2192 {page.literal(new)}'
    for key, (old, new) in (arm.get('diff') or {}).items()
  ]


# ----------------------------------------------------------------------------------------- CSV

NUMBERS = (
  *('n', 'failed', 'mean', 'sd', 'difference', 'p', 'p_holm', 'se_paired', 'se_unpaired', 'pairing_gain'),
  *('seeds_needed', 'speedup', 'seconds', 'tokens_per_second', 'parameters', 'flops_per_token'),
  *('steps', 'tokens'),
)


def to_csv(study):
  """A line an arm with every number in full, and its value of each seed."""
  seeds = study.spec.get('seeds', ())
  head = ['study', 'metric', 'better', 'budget', 'arm', 'baseline', 'verdict', *NUMBERS]
  head += ['low', 'high', 'bootstrap_low', 'bootstrap_high', *(f'seed {seed}' for seed in seeds)]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(head)
  same = [study.name, study.spec.get('metric', ''), study.spec.get('better', ''), study.budget()]
  for arm in study.arms():
    base = bool(arm.get('is_baseline'))
    line = [*same, arm['name'], int(base), 'baseline' if base else arm.get('verdict', '')]
    line += [_full(arm.get(key)) for key in NUMBERS]
    for key in ('interval', 'bootstrap'):
      line += [_full(bound) for bound in arm.get(key) or ('', '')]
    values = arm.get('values') or {}
    line += [_full(values.get(str(seed), values.get(seed))) for seed in seeds]
    writer.writerow(line)
  return text.getvalue()


def _full(value):
  value = study_results.as_number(value)
  return '' if math.isnan(value) else f'{value:.10g}'


# --------------------------------------------------------------------------------------- LaTeX


def to_latex(study):
  """The table of results for a paper; needs the package booktabs."""
  head, rows = page.drop_empty_columns(results_head(study), results(study))
  sides = ''.join('r' if name.startswith('>') else 'l' for name in head)
  head = [name.lstrip('>') for name in head]
  bold = {arm['name'] for arm in study.verdicts()['better']}
  lines = [
    ' & '.join([_bold(escape(name)) if name in bold else escape(name), *map(escape, cells)])
    for name, *cells in rows
  ]
  lines[1:1] = ['\\midrule'] if len(lines) > 1 else []  # under the baseline
  body = '\n'.join(f'    {line}' + ' \\\\' * (line != '\\midrule') for line in lines)
  label = re.sub(r'[^\w-]+', '-', study.name)
  return (
    '% needs \\usepackage{booktabs}\n'
    '\\begin{table}\n  \\centering\n'
    f'  \\caption{{{escape(study.headline())} {escape(study.protocol())}}}\n'
    f'  \\label{{tab:{label}}}\n'
    f'  \\begin{{tabular}}{{{sides}}}\n    \\toprule\n'
    f'    {" & ".join(map(escape, head))} \\\\\n    \\midrule\n'
    f'{body}\n'
    '    \\bottomrule\n  \\end{tabular}\n\\end{table}\n'
  )


def _bold(text):
  return f'\\textbf{{{text}}}'


def escape(text):
  """Any text as LaTeX shows it."""
  return ''.join(LATEX.get(character, character) for character in loggers.printable(str(text)))
