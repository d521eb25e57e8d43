"""The share of written words that are words: `python -m benchmarks.spelling --workdirs=runs/a,runs/b`.

Counts the words of the test answers in each run's predictions.jsonl that are in any name of --rows, of all
splits; others are misspelled. Writes results/multimodal/spelling.json.
"""

import argparse
import json
import re
from pathlib import Path

from benchmarks import record
from gpt_jax.runs import records


def words(text):
  """Return the words of a text in lower case."""
  return re.findall(r'\w+', text.lower())


def share_known(lines, known):
  """Return {words, known: their share in `known`} of the test answers of predictions."""
  written = [word for line in lines if line['split'] == 'test' for word in words(line['prediction'])]
  if not written:
    raise SystemExit('error: no test answer has a word\nfix: evaluate with --split=test --tasks=answer')
  return {'words': len(written), 'known': sum(word in known for word in written) / len(written)}


def main():
  """Write the shares of all runs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdirs', required=True)
  parser.add_argument('--rows', default='runs/emoji.jsonl')
  options = parser.parse_args()
  names = [json.loads(line)['name'] for line in Path(options.rows).read_text(encoding='utf-8').splitlines()]
  known = {word for name in names for word in words(name)}
  workdirs = [Path(workdir) for workdir in options.workdirs.split(',')]
  shares = {w.name: share_known(records.read_lines(w / 'predictions.jsonl'), known) for w in workdirs}
  record.write_result('multimodal/spelling', 'Words of emoji captions that are words of emoji names', shares)


if __name__ == '__main__':
  main()
