"""Result rows of tasks as lines of text."""

from gpt_jax.runs.metric_names import METRICS, headlines
from gpt_jax.runs.text_table import format_table


def format_row(row):
  """Format a result row as a line: value, interval, chance and baseline, then the rest."""
  text = f'{row["task"]:12} {row["metric"]:24} {row["value"]:10.4f}'
  if 'interval' in row:
    text += ' [{:.4f}, {:.4f}]'.format(*row['interval'])
  levels = [f'{key} {row[key]:.4f}' for key in ('chance', 'baseline') if key in row]
  if 'difference' in row:
    low, high = row['difference_interval']
    levels[-1] += f' ({row["baseline_of"]}), difference {row["difference"]:+.4f} [{low:+.4f}, {high:+.4f}]'
  named = ('task', 'metric', 'value', 'interval', 'chance', 'baseline', 'source', 'split', 'sampling')
  named += ('baseline_of', 'difference', 'difference_interval')
  rest = [
    f'{value} {key}' if key == 'tokens' else f'{key} {value}'
    for key, value in row.items()
    if key not in named
  ]
  return f'{text}   ' + ', '.join([*levels, f'{row["source"]} {row["split"]}', *rest])


def summary_lines(rows):
  """A table of the first metric with a chance level of each task and source, as lines."""
  cells = [
    (
      row['task'],
      row['source'],
      row['metric'].replace('_', ' '),
      show(row, 'value'),
      show(row, 'chance'),
      f'{row["n"]} of {row["split"]}',
    )
    for row in headlines(rows)
  ]
  header = ('task', 'source', 'measure', 'score', 'chance', 'examples')
  return format_table(cells, header) if cells else []


def show(row, key):
  """Format a number of a row as its metric has it, else as a share."""
  metric = METRICS.get(row['metric'])
  return f'{metric.show(row[key])} {metric.unit}'.strip() if metric else f'{row[key]:.1%}'
