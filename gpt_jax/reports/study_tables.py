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


def results(told):
  """The table of results: [(name, mean, n, difference, interval, bootstrap, p, verdict)] as texts.

  Args:
    told: a StudyResults.
  """
  rows = []
  for arm in told.arms():
    base, places = arm.get('is_baseline'), told.places
    mean = study_results.plain(study_results.number(arm, 'mean'), places)
    spread = study_results.plain(study_results.number(arm, 'sd'), places)
    seeds, planned = int(study_results.number(arm, 'n', 0)), len(told.study.get('seeds', ()))
    rows.append(
      (
        study_results.label(arm),
        f'{mean} \u00b1 {spread}' if mean and spread else mean,
        f'{seeds}' if seeds == planned else f'{seeds} of {planned}',
        '' if base else told.difference(study_results.number(arm, 'difference')),
        '' if base else told.interval(arm.get('interval')),
        '' if base else told.interval(arm.get('bootstrap')),
        '' if base else study_results.probability(study_results.number(arm, 'p_holm')),
        'baseline' if base else arm.get('verdict') or 'undecided',
      )
    )
  return rows


def results_head(told):
  """Names of the columns of `results`; '>' is right-aligned."""
  mean = f'>{told.metric} \u00b1 sd'
  intervals = ('>95 % interval', '>bootstrap')
  return ('arm', mean, '>seeds', '>difference', *intervals, '>p (Holm)', 'verdict')


def costs(told):
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
    for arm in told.arms()
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


def to_markdown(told):
  """The whole report in Markdown, but its figures and samples."""
  said = [f'# {told.name}', told.study.get('question', ''), f'**{told.headline()}**']
  said += ['\n'.join(f'- {told.sentence(arm)}' for arm in told.others())]
  said += ['## Results', told.protocol(), grid(*page.drop_empty_columns(results_head(told), results(told)))]
  said += ['\n'.join(f'- {note}' for note in told.analysis.get('notes', ()))]
  if effects := told.analysis.get('effects'):
    named = [(f'{one["factor"]}={one["level"]} against {one["against"]}', one) for one in effects]
    said += ['## Main effects', judged(told, 'level', named)]
  if found := told.analysis.get('scaling'):
    named = [(f'{one["levels"]} at {one["size"]}', one) for one in found['effects']]
    said += ['## Scaling', '\n'.join(f'- {text}' for text in told.laws())]
    said += [judged(told, 'effect', named), '\n'.join(f'- {w}' for w in found['warnings'])]
  said += ['## Cost', f'Budget: {told.budget()}.', grid(*page.drop_empty_columns(COSTS_HEAD, costs(told)))]
  differences = [
    (arm['name'], ', '.join(changes(arm)) or 'nothing', '; '.join(arm.get('flags', ())))
    for arm in told.others()
  ]
  said += ['## What the arms change', grid(*page.drop_empty_columns(('arm', 'config', 'flags'), differences))]
  if troubles := told.troubles():
    said += ['## What went wrong', grid(('arm', '>seed', 'outcome', 'why'), troubles)]
  if negatives := told.negatives():
    said += ['## What did not help', '\n'.join(f'- {told.sentence(arm)}' for arm in negatives)]
  versions = told.study.get('versions', {}).items()
  versions = ', '.join(f'{k} {v}' for k, v in versions if v and k != 'command')
  command = told.study.get('command', '')
  said += ['## Reproduce', f'```\n{command}\n```' if command else '', versions]
  return '\n\n'.join(part.strip('\n') for part in said if part) + '\n'


def judged(told, what, named):
  """A Markdown table of [(name, what inference.judge says)]."""
  rows = [
    (
      name,
      told.difference(study_results.number(one, 'difference')),
      told.interval(one['interval']),
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


def to_csv(told):
  """A line an arm with every number in full, and its value of each seed."""
  seeds = told.study.get('seeds', ())
  head = ['study', 'metric', 'better', 'budget', 'arm', 'baseline', 'verdict', *NUMBERS]
  head += ['low', 'high', 'bootstrap_low', 'bootstrap_high', *(f'seed {seed}' for seed in seeds)]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(head)
  same = [told.name, told.study.get('metric', ''), told.study.get('better', ''), told.budget()]
  for arm in told.arms():
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


def to_latex(told):
  """The table of results for a paper; needs the package booktabs."""
  head, rows = page.drop_empty_columns(results_head(told), results(told))
  sides = ''.join('r' if name.startswith('>') else 'l' for name in head)
  head = [name.lstrip('>') for name in head]
  bold = {arm['name'] for arm in told.verdicts()['better']}
  lines = [
    ' & '.join([_bold(escape(name)) if name in bold else escape(name), *map(escape, cells)])
    for name, *cells in rows
  ]
  lines[1:1] = ['\\midrule'] if len(lines) > 1 else []  # under the baseline
  body = '\n'.join(f'    {line}' + ' \\\\' * (line != '\\midrule') for line in lines)
  label = re.sub(r'[^\w-]+', '-', told.name)
  return (
    '% needs \\usepackage{booktabs}\n'
    '\\begin{table}\n  \\centering\n'
    f'  \\caption{{{escape(told.headline())} {escape(told.protocol())}}}\n'
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
