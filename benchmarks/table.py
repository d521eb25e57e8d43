"""The tables of README.md and benchmarks/README.md: `python -m benchmarks.table` makes them.

All are of results/. A row shows the claim, the numbers that support it, the minutes, the hardware
and the command; of a study the question, the verdict and what it took.
"""

import datetime
import json
import pathlib

from benchmarks import growth, weak_scaling
from benchmarks.gpu import table as gpu_goals
from benchmarks.record import RESULTS, STUDIES

README = pathlib.Path(__file__).parents[1] / 'README.md'
PAGES = (README, pathlib.Path(__file__).parent / 'README.md')
MARK, END = '<!-- {} -->', '<!-- end of {} -->'


def number(name, result):
  """The headline of a result file, as text: of tasks if it has any, else the loss."""
  numbers = result['numbers']
  rows = [*numbers['evaluations'], *result['evaluations_later']]
  if told := [*likelihood(rows), *tokens(rows), *scores(rows), *ranks(rows)]:
    return ', '.join(told)
  text = f'{numbers["valid_loss"]:.3f} nats/token'
  if 'valid_bits_per_byte' in numbers:
    text += f', {numbers["valid_bits_per_byte"]:.3f} bits/byte'
  return text


def likelihood(rows):
  """How many bits a value of a lossless picture takes."""
  for row in rows:
    if row['metric'] == 'bits_per_dim' and row['split'] == 'test':
      yield f'{row["value"]:.3f} bits/dim'


def tokens(rows):
  """What a learned tokenizer keeps of the test data, and what k-means does."""
  for metric, unit in (('psnr', 'dB PSNR'), ('log_mel_rmse', 'log-mel RMSE')):
    found = {
      row.get('tokenizer', ''): row['value']
      for row in rows
      if row['metric'] == metric and row['split'] == 'test' and row['task'] == 'reconstruct'
    }
    if '' in found:
      yield f'{found[""]:#.4g} {unit} (k-means {found["k-means"]:#.4g})'


def ranks(rows):
  """Where the true description ranks among those of all test examples."""
  for row in rows:
    if row['metric'] == 'mrr' and row['split'] == 'test' and 'control' not in row:
      told = f'{row["value"]:.3f} (chance {row["chance"]:.3f}, {row["candidates"]} candidates)'
      yield f'{row["source"]} mean reciprocal rank {told}'


def scores(rows):
  """The first measure of each task and source with a chance level: latest split, most examples.

  Of free descriptions, which no answer equals, the words that they share.
  """
  found, free = {}, {row['source'] for row in rows if row['metric'] == 'token_f1'}
  free -= {r['source'] for r in rows if r['metric'] == 'exact_match' and r['value'] > 0}
  for row in rows:
    if row['metric'] == 'exact_match' and row['source'] in free:
      continue
    if 'chance' in row and not {'of', 'control'} & set(row) and 'interval' in row:
      best = found.setdefault((row['split'], row['task'], row['source']), row)
      if row.get('n', 0) > best.get('n', 0):
        found[row['split'], row['task'], row['source']] = row
  split = 'test' if any(row['split'] == 'test' for row in found.values()) else 'valid'
  shown = [row for row in found.values() if row['split'] == split]
  sources = [row['source'] for row in shown]
  for row in shown:
    low, high = row['interval']
    interval = f'{low:.1%} to {high:.1%}, chance {row["chance"]:.0%}'
    if row['metric'] == 'token_f1':
      interval += f', nearest neighbor {row["baseline"]:.1%}'
    task = f' ({row["task"]})' if sources.count(row['source']) > 1 else ''
    task += ' token F1' if row['metric'] == 'token_f1' else ''
    yield f'{row["source"]}{task} {row["value"]:.1%} ({interval})'


def minutes(result):
  """From start to end, evaluation, sampling and report included; installation apart."""
  if 'minutes' in result:  # of several runs, which may have had pauses between them
    return result['minutes']
  ends = [datetime.datetime.fromisoformat(result[key]) for key in ('started', 'finished')]
  return (ends[1] - ends[0]).total_seconds() / 60


def table():
  """The Markdown table."""
  lines = ['| what | result | minutes | hardware | command |', '|---|---|---|---|---|']
  for path in sorted(RESULTS.glob('*.json')):
    result = json.loads(path.read_text())
    file = f'[{result["claim"]}](benchmarks/results/{path.name})'
    command = result['command'].removeprefix('python ')
    lines.append(
      f'| {file} | {number(path.stem, result)} | {minutes(result):.1f} | {result["hardware"]} | `{command}` |'
    )
  return '\n'.join(lines)


def studies():
  """The Markdown table of studies."""
  lines = ['| study | verdict | runs | minutes | hardware |', '|---|---|---|---|---|']
  for path in sorted(STUDIES.glob('*.json')):
    result = json.loads(path.read_text())
    if 'headline' in result:
      lines.append(
        f'| [{result["question"]}](benchmarks/results/ablations/{path.stem}.md) '
        f'| {result["headline"]} | {result["runs"]} | {minutes(result):.0f} '
        f'| {result["hardware"]} |'
      )
  return '\n'.join(lines)


def duration(seconds):
  """Such as '47.7 ms' or '19.2 s'."""
  return f'{seconds:.1f} s' if seconds >= 10 else f'{1e3 * seconds:,.4g} ms'


def speed():
  """The Markdown table of comparisons of speed: how many times as fast as each peer we are."""
  lines = ['| what | ours | times as fast as (least to largest turn) | hardware |', '|---|---|---|---|']
  for path in sorted((RESULTS / 'speed').glob('*.json')):
    result = json.loads(path.read_text())
    rows = result['rows'] if isinstance(result['rows'], dict) else {}
    compared = {k: row for k, row in rows.items() if isinstance(row, dict) and 'ratios' in row}
    for question, row in compared.items():
      told = [(peer, *ratio) for peer, ratio in row['ratios'].items() if ratio]
      peers = '; '.join(
        f'{peer} **{value:.2f}** ({low:.2f} to {high:.2f})' for peer, value, (low, high) in told
      )
      if told:
        lines.append(
          f'| [{question}](benchmarks/results/speed/{path.name}) '
          f'| {duration(row["rows"]["gpt_jax"]["median"])} | {peers} | {result["hardware"]} |'
        )
  return '\n'.join(lines)


def rows_of(path):
  """The rows of a result file; none where it is not made yet."""
  if not path.exists():
    return []
  told = json.loads(path.read_text())
  return told.get('numbers', told)['rows']


def plans():
  """The Markdown table of plans."""
  lines = [
    '| plan | mesh | memory of a device | a step takes at least, by | if nothing overlaps '
    '| tokens/s | seconds to plan |',
    '|---|---|---|---|---|---|---|',
  ]
  made = json.loads((RESULTS / 'plan' / 'plans.json').read_text())['numbers']['plans']
  for name, row in made.items():
    plan = row['plan']
    if 'train' not in plan:
      lines.append(f'| {name} | not compiled: {plan["error"].splitlines()[0]} | | | | | |')
      continue
    memory, step = plan['train']['memory'], plan['train'].get('estimate')
    mesh = ', '.join(f'{axis} {n}' for axis, n in plan['mesh'].items()) or 'one device'
    word = 'fits' if memory['fits'] else '**does not fit**'
    line = f'| {name} | {mesh} | {memory["total"] / 2**30:.2f} of '
    line += f'{memory["available"] / 2**30:.2f} GiB, {word} '
    line += (
      f'| {step["bound"]:.3g} s, {step["limit"]} | {step["serial"]:.3g} s '
      f'| {step["tokens_per_second_serial"]:,.0f} to {step["tokens_per_second"]:,.0f} '
      if step
      else '| | | '
    )
    lines.append(f'{line}| {row["seconds"]:.0f} |')
  return '\n'.join(lines)


def gpu():
  """What was claimed of one GPU, measured."""
  found = json.loads((RESULTS / 'speed' / 'gpu.json').read_text())
  goals = gpu_goals(found['rows']).partition('\n\n')[0]
  return f'{goals}\n\n{found["hardware"]}'


TABLES = {
  'results': table,
  'gpu': gpu,
  'studies': studies,
  'speed': speed,
  'growth': lambda: '\n'.join(growth.table(rows_of(growth.FILE))),
  'plans': plans,
  'weak_scaling': lambda: '\n'.join(weak_scaling.table(rows_of(weak_scaling.PATH))),
}


def rewritten(text):
  """A page's text with the tables between their marks renewed."""
  for name, make in TABLES.items():
    begin, end = MARK.format(name), END.format(name)
    if begin not in text:
      continue
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    text = f'{head}{begin}\n{make()}\n{end}{tail}'
  return text


if __name__ == '__main__':
  for page in PAGES:
    page.write_text(rewritten(page.read_text()))
