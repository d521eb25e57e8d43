"""Write the result file of a run or study: `python -m benchmarks.record --workdir=DIR --name=NAME`.

A run gives results/NAME.json: numbers, evaluations, hardware, versions, command and dates. A study
gives results/ablations/NAME.json with its verdicts, a copy of its report as NAME.md, and, if its runs draw,
NAME.png: the first drawings that were judged, a row of each seed of each arm. `--claim` is the title of the
result.
"""

import argparse
import collections
import datetime
import importlib.metadata
import json
from pathlib import Path

import numpy as np

from gpt_jax.data import media_io
from gpt_jax.reports import study_results
from gpt_jax.runs import hardware, provenance, records, run_folder

RESULTS = Path(__file__).parent / 'results'
STUDIES = RESULTS / 'ablations'
DRAWINGS = 16  # of a run in the figure of a study
COST = ('parameters', 'tokens', 'flops_per_token')  # of an arm's run; what a scaling law is fitted over


def run_summary(workdir):
  """Read a run folder -> dict of its numbers, versions, hardware, command and dates."""
  result, events = run_folder.read_result(workdir), run_folder.read_events(workdir)
  if not result:
    raise SystemExit(f'error: {workdir} has not finished\nfix: run its command again to the end')
  versions = result.pop('versions')
  later = records.read_lines(Path(workdir) / 'evaluations.jsonl')
  starts = [event for event in events if event['event'] in ('start', 'resume')]
  return {
    'command': versions.pop('command'),
    'started': starts[0]['time'],
    'finished': events[-1]['time'],
    'sessions': len(starts),
    'hardware': result.pop('hardware'),
    'versions': versions,
    'numbers': without_folders({k: v for k, v in result.items() if k != 'defaults_diff'}),
    'evaluations_later': later,
    'examples': text_examples(workdir),
  }


def without_folders(value):
  """Reduce absolute paths, as of an imported model, to two parts: the others are of one machine."""
  if isinstance(value, dict):
    return {key: without_folders(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_folders(part) for part in value]
  is_path = isinstance(value, str) and Path(value).is_absolute()
  return '/'.join(Path(value).parts[1:][-2:]) if is_path else value


def text_examples(workdir, count=6):
  """The first test examples, which are in a fixed random order, of each source whose answers are text."""
  sources = collections.defaultdict(list)
  for line in records.read_lines(Path(workdir) / 'predictions.jsonl'):
    references = line.get('target')
    references = references if isinstance(references, list) else [references]
    texts = [line.get('input'), line.get('prediction'), *references]
    if line['split'] == 'test' and all(isinstance(text, str) for text in texts):
      fields = {'source': line['source'], 'condition': line['input'], 'references': references}
      baseline = {'baseline': line['baseline']} if 'baseline' in line else {}
      sources[line['source']].append({**fields, **baseline, 'run': line['prediction']})
  return [example for examples in sources.values() for example in examples[:count]]


def study_summary(workdir):
  """Read a study folder -> dict of its arms with verdicts and intervals, versions, hardware and dates."""
  results = study_results.read_study(workdir)
  if not results.analysis or results.pending:
    raise SystemExit(f'error: {workdir} has not finished\nfix: run its command again to the end')
  study, analysis = results.spec, results.analysis
  tuning = [row for path in workdir.glob('tuning/*') for row in study_results.read_study(path).rows]
  events = [event for row in results.rows + tuning for event in run_folder.read_events(row['folder'])]
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
    'p_holm',
    'speedup',
    'statuses',
  )
  cost = {arm['name']: {key: arm.get(key) for key in COST} for arm in study['arms']}
  return {
    'question': study['question'],
    'headline': study_results.headline(results),
    'command': study['command'],
    'started': min(event['time'] for event in events),
    'finished': max(event['time'] for event in events),
    'hardware': versions['device'],
    'versions': versions,
    'runs': len(results.rows),
    'tuning_runs': len(tuning),
    'attempts': dict(collections.Counter(line['outcome'] for line in results.attempts)),
    'metric': study['metric'],
    'tolerance': study['tolerance'],
    'budget': study['budget'],
    'tune': study.get('tune') or {},
    'search': study.get('search') or {},
    'schedule': study.get('schedule', {}),
    'arms': [{key: arm.get(key) for key in keys} | cost[arm['name']] for arm in analysis['arms']],
    'pairing': analysis['pairing'],
    'effects': analysis['effects'],
    'interactions': analysis['interactions'],
    'runner_up': analysis['runner_up'],
    'scaling': analysis['scaling'],
  }


def drawings(results):
  """Return the first judged drawings of a study's runs, uint8 [Y, X, 3], arm by arm; None if none."""
  from PIL import Image

  runs = [row for arm in results.analysis['arms'] for row in results.runs_of(arm['name'])]
  paths = [sorted(Path(row['folder']).glob('predictions/draw*/*[0-9].png'))[:DRAWINGS] for row in runs]
  if not all(len(own) == DRAWINGS for own in paths):
    return None
  read = lambda path: np.asarray(Image.open(path).convert('RGB'))
  return media_io.tile([read(path) for own in paths for path in own], DRAWINGS)


def peer_versions(*packages):
  """The installed versions of what a benchmark compares with."""
  return {name: importlib.metadata.version(name) for name in packages}


def write_result(name, claim, numbers):
  """Write results/NAME.json of a measurement that is not one run, with its command and versions."""
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
  workdir, folder, summarize = Path(arguments.workdir), RESULTS, run_summary
  if (workdir / 'study.json').exists():
    folder, summarize = STUDIES, study_summary
  content = {'name': arguments.name, 'claim': arguments.claim} | summarize(workdir)
  path = folder / f'{arguments.name}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  if folder == STUDIES:
    report = (workdir / 'report.md').read_text()
    if (figure := drawings(study_results.read_study(workdir))) is not None:
      (folder / f'{arguments.name}.png').write_bytes(media_io.to_png(figure, 2))
      arms = ', '.join(arm['name'] for arm in content['arms'])
      report += f'\n## Drawings\n\nA row of each seed, of {arms}.\n\n![Drawings]({arguments.name}.png)\n'
    (folder / f'{arguments.name}.md').write_text(report)
  path.write_text(json.dumps(records.to_json(content), indent=1) + '\n')
  print(path)


if __name__ == '__main__':
  main()
