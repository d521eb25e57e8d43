"""Which part of a run's time went into steps that count, over all its sessions.

From the run folder alone. A session is the work of one process: it begins `startup` seconds before
its start or resume event and ends with its last sign of life. Steps that were made again because a
session died after its last checkpoint, or because the run went back, are lost, with all that fell
between them. Phases and `other` add up to the time from the first start to the last sign of life.
"""

from gpt_jax.runs import history

PHASES = ('steps', 'startup', 'compile', 'evaluate', 'checkpoint', 'lost', 'waiting', 'other')
SECONDS = {'compile': 'seconds', 'evaluate': 'seconds', 'checkpoint': 'blocked_seconds'}
BEGINNINGS = ('start', 'resume')


def phases(run):
  """{phase: seconds} of a story.Story, in the order of PHASES; {} where nothing has begun."""
  sessions = split(run)
  if not sessions:
    return {}
  found = dict.fromkeys(PHASES, 0.0)
  for n, session in enumerate(sessions):
    after = sessions[n + 1] if n + 1 < len(sessions) else None
    add_session(found, session, after)
    if after:
      found['waiting'] += max(0.0, after['begin'] - session['end'])
  total = sessions[-1]['end'] - sessions[0]['begin']
  found['steps'] = productive(run)
  found['other'] = total - sum(found.values())
  return found


def productive(run):
  """Seconds of the steps that count: metrics.jsonl keeps no others."""
  rows = [(row['step'], row['step_seconds']) for row in run.metrics if 'step_seconds' in row]
  firsts = [0, *(step for step, _ in rows)]
  return sum(each * (step - first) for (step, each), first in zip(rows, firsts, strict=False))


def split(run):
  """The sessions in order: {begin, open, end: seconds; events: [(second, event)]}."""
  moments = [(history.seconds(event['time']), event) for event in run.events]
  opens = [(time, event) for time, event in moments if event['event'] in BEGINNINGS]
  times = [row['time'] for row in run.metrics if 'time' in row]
  sessions = []
  for n, (time, event) in enumerate(opens):
    until = opens[n + 1][0] if n + 1 < len(opens) else float('inf')
    mine = [(moment, event) for moment, event in moments if time <= moment < until]
    seen = [moment for moment in times if time <= moment < until]
    sessions.append(
      {
        'begin': time - sum(event.get('startup', {}).values()),
        'open': time,
        'end': max([*(moment for moment, _ in mine), *seen]),
        'events': mine,
      }
    )
  return sessions


def add_session(found, session, after):
  """Add what one session's events tell; `after`: the next session or None."""
  gone = lost(session, after)
  inside = lambda moment: any(first < moment <= last for first, last in gone)
  found['startup'] += session['open'] - session['begin']
  found['lost'] += sum(last - first for first, last in gone)
  for moment, event in session['events']:
    if event['event'] in SECONDS and (event['event'] == 'compile' or not inside(moment)):
      seconds = event.get(SECONDS[event['event']], 0.0)
      found[event['event']] += seconds
      found['lost'] -= seconds if inside(moment) else 0.0


def lost(session, after):
  """[(from, to)]: what was done after the checkpoint that the run then went on from."""
  ends = [(moment, event['step']) for moment, event in session['events'] if event['event'] == 'go_back']
  if after and not any(event['event'] in ('preempted', 'done') for _, event in session['events']):
    ends.append((session['end'], after['events'][0][1].get('step', 0)))
  found = []
  for moment, step in ends:
    saved = [
      time
      for time, event in session['events']
      if time < moment and event['event'] == 'checkpoint' and event.get('step') == step
    ]
    first = max([session['open'], *saved])
    found.append((max([first, *(last for _, last in found)]), moment))
  return found


def line(run):
  """One line for the reader, '' where nothing has begun."""
  found = phases(run)
  total = sum(found.values())
  if total <= 0:
    return ''
  shares = ', '.join(f'{name} {s / total:.1%}' for name, s in found.items() if s / total >= 0.0005)
  return f'goodput {found["steps"] / total:.1%} of {total:.1f} s: {shares}'
