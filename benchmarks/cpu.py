"""How fast we are on a CPU, beside others: `python -m benchmarks.cpu [--only='train step, 4']`.

Every comparison is made anew, in turns (see versus.py), and kept after each turn in
results/speed/cpu.json: what is not finished when it is stopped is not lost. About 15 minutes on two
cores. `--only` runs the questions that begin like this and leaves the others as they were; each row
says what made it. Generation, whose units take seconds, takes at most two turns.
"""

import argparse

from benchmarks import generate, train_step, versus
from benchmarks.record import RESULTS
from gpt_jax.runs import records

BATCHES = (1, 8)  # rows that are generated at once
FILE = RESULTS / 'speed' / 'cpu.json'
CLAIM = 'Speed on a CPU of two cores, against torch, transformers and CTranslate2'


def main():
  """Run the comparisons, keep them, print them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='')
  parser.add_argument('--turns', type=int, default=3)
  arguments = parser.parse_args()
  FILE.parent.mkdir(exist_ok=True, parents=True)
  found = versus.known(FILE) if arguments.only else {}
  questions = [f'train step, {name}' for name in train_step.SHAPES]
  questions += [f'generate, {name}' for name in map(generate.label, BATCHES)]
  chosen = [question for question in questions if question.startswith(arguments.only)]
  if not chosen:
    parser.error(f'--only={arguments.only} begins none of: {"; ".join(questions)}')

  def keep(new):
    found.update(new)
    records.write_json(FILE, versus.content('cpu', CLAIM, found))

  shapes = [name for name in train_step.SHAPES if f'train step, {name}' in chosen]
  batches = [batch for batch in BATCHES if f'generate, {generate.label(batch)}' in chosen]
  train_step.rows(shapes, arguments.turns, keep)
  generate.rows(
    batches=batches,
    turns=min(2, arguments.turns),
    keep=lambda new: keep({f'generate, {k}': row for k, row in new.items()}),
  )
  print('\n'.join(lines(found)))


def lines(found):
  """A line a peer: how many times as fast we are, and both medians."""
  for question, row in found.items():
    ours = row['rows']['gpt_jax']['median']
    for peer, ratio in row['ratios'].items():
      if ratio is None:
        yield f'{question}: {peer} is left out: {row["rows"][peer].get("missing", "not timed yet")}'
        continue
      value, (low, high) = ratio
      theirs = row['rows'][peer]['median']
      yield (
        f'{question}: {value:.2f}x {peer} ({low:.2f} to {high:.2f}), '
        f'{1e3 * ours:.1f} ms against {1e3 * theirs:.1f} ms'
      )


if __name__ == '__main__':
  main()
