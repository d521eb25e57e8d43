"""Keep what a finished run measured: `python -m benchmarks.record --workdir=DIR --name=NAME`.

Writes results/NAME.json from the run folder alone: numbers, evaluations, hardware, versions, the
command that made them, and when. `--claim` says in a few words what was measured.
"""

import argparse
import json
from pathlib import Path

from gpt_jax import records, runs

RESULTS = Path(__file__).parent / 'results'


def summary(workdir):
  """What a reader needs to believe and repeat a run -> dict."""
  result, events = runs.read_result(workdir), runs.read_events(workdir)
  if not result:
    raise SystemExit(f'error: {workdir} has not finished\nfix: run its command again to the end')
  versions = result.pop('versions')
  saved = Path(workdir) / 'evaluations.jsonl'
  later = records.read_lines(saved)
  starts = [event for event in events if event['event'] in ('start', 'resume')]
  return {
    'command': versions.pop('command'),
    'started': starts[0]['time'],
    'finished': events[-1]['time'],
    'sessions': len(starts),
    'hardware': result.pop('hardware'),
    'versions': versions,
    'numbers': {k: v for k, v in result.items() if k != 'defaults_diff'},
    'evaluations_later': later,
  }


def main():
  """Write one result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--name', required=True)
  parser.add_argument('--claim', default='')
  arguments = parser.parse_args()
  content = {'name': arguments.name, 'claim': arguments.claim} | summary(arguments.workdir)
  RESULTS.mkdir(exist_ok=True)
  path = RESULTS / f'{arguments.name}.json'
  path.write_text(json.dumps(records.to_json(content), indent=1) + '\n')
  print(path)


if __name__ == '__main__':
  main()
