"""Keep what a run or study measured: `python -m benchmarks.record --workdir=DIR --name=NAME`.

Writes results/NAME.json from the run folder alone: numbers, evaluations, hardware, versions, the
command that made them, and when. `--claim` says in a few words what was measured. Of a study:
results/ablations/NAME.json with the verdicts, and its report beside it as NAME.md.
"""

import argparse
import collections
import datetime
import json
import shutil
from pathlib import Path

from gpt_jax.reports import study_results
from gpt_jax.runs import hardware, provenance, records, run_folder

RESULTS = Path(__file__).parent / 'results'
STUDIES = RESULTS / 'ablations'


def summary(workdir):
  """What a reader needs to believe and repeat a run -> dict."""
  result, events = run_folder.read_result(workdir), run_folder.read_events(workdir)
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


def summary_of_study(workdir):
  """The same of a study: what each arm changed, how sure that is, and what it took -> dict."""
  results = study_results.read_study(workdir)
  if not results.analysis or results.pending():
    raise SystemExit(f'error: {workdir} has not finished\nfix: run its command again to the end')
  study, analysis = results.spec, results.analysis
  events = [event for row in results.rows for event in run_folder.read_events(row['folder'])]
  versions = dict(study['versions'])
  versions.pop('command', None)
  keys = (
    'name',
    'verdict',
    'mean',
    'sd',
    'n',
    'values',
    'difference',
    'interval',
    'bootstrap',
    'p_holm',
    'speedup',
    'parameters',
    'statuses',
  )
  return {
    'question': study['question'],
    'headline': results.headline(),
    'command': study['command'],
    'started': min(event['time'] for event in events),
    'finished': max(event['time'] for event in events),
    'hardware': versions['device'],
    'versions': versions,
    'runs': len(results.rows),
    'attempts': dict(collections.Counter(line['outcome'] for line in results.attempts)),
    'metric': study['metric'],
    'tolerance': study['tolerance'],
    'budget': study['budget'],
    'schedule': study.get('schedule', {}),
    'arms': [{key: arm.get(key) for key in keys} for arm in analysis['arms']],
    'pairing': analysis['pairing'],
    'effects': analysis['effects'],
    'scaling': analysis['scaling'],
  }


def keep(name, claim, numbers):
  """Write results/NAME.json of a proof that is no run, with what a reader needs to repeat it."""
  device = hardware.name()
  versions = provenance.versions(device)
  content = {
    'name': name,
    'claim': claim,
    'command': versions.pop('command'),
    'hardware': device,
    'versions': versions,
    'finished': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
    'numbers': numbers,
  }
  path = RESULTS / f'{name}.json'
  path.parent.mkdir(exist_ok=True, parents=True)
  path.write_text(json.dumps(records.to_json(content), indent=1) + '\n')
  print(path)


def main():
  """Write one result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--name', required=True)
  parser.add_argument('--claim', default='')
  arguments = parser.parse_args()
  workdir, folder, make = Path(arguments.workdir), RESULTS, summary
  if (workdir / 'study.json').exists():
    folder, make = STUDIES, summary_of_study
  content = {'name': arguments.name, 'claim': arguments.claim} | make(workdir)
  folder.mkdir(exist_ok=True)
  path = folder / f'{arguments.name}.json'
  if folder == STUDIES:
    shutil.copy(workdir / 'report.md', folder / f'{arguments.name}.md')
  path.write_text(json.dumps(records.to_json(content), indent=1) + '\n')
  print(path)


if __name__ == '__main__':
  main()
