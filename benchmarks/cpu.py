"""Compare speed on a CPU with peers: `python -m benchmarks.cpu [--only='train step, 4']`.

All sides run in turns (see versus.py), about 20 minutes on two cores. Results are written to
results/speed/cpu.json after each turn, so an interrupted run loses nothing. `--only` runs the
questions with this prefix and keeps the other rows. Generation runs at most two turns.
"""

import argparse

from benchmarks import generate, train_step, versus
from benchmarks.record import RESULTS
from gpt_jax.runs import records

BATCHES = (1, 8)  # batch sizes of generation
FILE = RESULTS / 'speed' / 'cpu.json'
CLAIM = 'Speed on a CPU of two cores, against torch, transformers and CTranslate2'


def main():
  """Run the comparisons, write the result file, print a summary."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='')
  parser.add_argument('--turns', type=int, default=3)
  arguments = parser.parse_args()
  FILE.parent.mkdir(exist_ok=True, parents=True)
  results = versus.read_rows(FILE) if arguments.only else {}
  questions = [f'train step, {name}' for name in train_step.SHAPES]
  questions += [f'generate, {name}' for name in map(generate.label, BATCHES)]
  chosen = [question for question in questions if question.startswith(arguments.only)]
  if not chosen:
    parser.error(f'--only={arguments.only} is not a prefix of any question: {"; ".join(questions)}')

  def save(new):
    results.update(new)
    records.write_json(FILE, versus.result_content('cpu', CLAIM, results))

  shapes = [name for name in train_step.SHAPES if f'train step, {name}' in chosen]
  batches = [batch for batch in BATCHES if f'generate, {generate.label(batch)}' in chosen]
  train_step.rows(shapes, arguments.turns, save)
  generate.rows(
    batches=batches,
    turns=min(2, arguments.turns),
    save=lambda new: save({f'generate, {k}': row for k, row in new.items()}),
  )
  print('\n'.join(format_lines(results)))


def format_lines(results):
  """One line per peer: the speed ratio and both medians."""
  for question, row in results.items():
    ours = row['rows']['gpt_jax']['median']
    for peer, ratio in row['ratios'].items():
      if ratio is None:
        yield f'{question}: {peer} is skipped: {row["rows"][peer].get("missing", "not timed yet")}'
        continue
      value, (low, high) = ratio
      theirs = row['rows'][peer]['median']
      yield (
        f'{question}: {value:.2f}x {peer} ({low:.2f} to {high:.2f}), '
        f'{1e3 * ours:.1f} ms against {1e3 * theirs:.1f} ms'
      )


if __name__ == '__main__':
  main()
