"""Generate the tables of README.md, docs/ and benchmarks/README.md: `python -m benchmarks.table`.

All rows come from results/. The row of a run shows claim, numbers, minutes, hardware and command; the
row of a study shows question, verdict, runs, minutes and hardware.
"""

import collections
import dataclasses
import datetime
import json
import os
import pathlib
import re

from benchmarks import growth, weak_scaling
from benchmarks.gpu import table as gpu_goals
from benchmarks.record import COST, RESULTS, STUDIES
from gpt_jax.ablation import design, proof
from gpt_jax.ablation.stats import analyze
from gpt_jax.reports import study_results

ROOT = pathlib.Path(__file__).parents[1]
DOCS = (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
PAGES = (*DOCS, ROOT / 'benchmarks' / 'README.md')
HIGHLIGHTS = ('demo', 'translate_de', 'speech_frames', 'scitldr_gemma', 'sums_grpo')  # on the first page
KEPT = ('name', 'slug', 'levels', 'is_baseline')  # of an arm
MARK, END = '<!-- {} -->', '<!-- end of {} -->'


def headline(result):
  """Headline numbers of a result file as text: task scores if there are any, else the loss."""
  numbers = result['numbers']
  rows = [*numbers['evaluations'], *result['evaluations_later']]
  kinds = (likelihood, free_text, tokens, scores, ranks)
  if texts := [*(text for kind in kinds for text in kind(rows)), *prompted(result)]:
    return ', '.join(texts)
  text = f'{numbers["valid_loss"]:.3f} nats/token'
  if 'valid_bits_per_byte' in numbers:
    text += f', {numbers["valid_bits_per_byte"]:.3f} bits/byte'
  return text


def likelihood(rows):
  """Bits per dimension of lossless images."""
  for row in rows:
    if row['metric'] == 'bits_per_dim' and row['split'] == 'test':
      yield f'{row["value"]:.3f} bits/dim'


def free_text(rows):
  """Bits per byte of test texts, and how varied continuations are beside the texts themselves."""
  for row in rows:
    if row['metric'] == 'bits_per_byte' and row['split'] == 'test':
      yield f'{row["value"]:.3f} bits/byte'
    if row['metric'] == 'distinct_2' and row['split'] == 'test':
      yield f'{row["value"]:.1%} of 2-grams distinct (in the text {row["baseline"]:.1%})'


def tokens(rows):
  """Reconstruction quality of a learned tokenizer and of k-means on the test data."""
  for metric, unit in (('psnr', 'dB PSNR'), ('log_mel_rmse', 'log-mel RMSE')):
    by_tokenizer = {
      row.get('tokenizer', ''): row['value']
      for row in rows
      if row['metric'] == metric and row['split'] == 'test' and row['task'] == 'reconstruct'
    }
    if '' in by_tokenizer:
      yield f'{by_tokenizer[""]:#.4g} {unit} (k-means {by_tokenizer["k-means"]:#.4g})'


def ranks(rows):
  """Mean reciprocal rank of the true description among all test descriptions."""
  for row in rows:
    if row['metric'] == 'mrr' and row['split'] == 'test' and 'control' not in row:
      text = f'{row["value"]:.3f} (chance {row["chance"]:.3f}, {row["candidates"]} candidates)'
      yield f'{row["source"]} mean reciprocal rank {text}'


def scores(rows):
  """First metric with a chance level of each task and source; test split first, most examples.

  Free descriptions, where exact match is always 0, and spans of a paragraph show their token F1, unless
  all answers are one word and both are equal.
  """
  values = {(row['source'], row['metric']): row['value'] for row in rows if not {'of', 'control'} & set(row)}
  spans = {row['source'] for row in rows if row.get('baseline_of') == 'window'}
  spans = {name for name in spans if values.get((name, 'exact_match')) != values.get((name, 'token_f1'))}
  best, free = {}, {row['source'] for row in rows if row['metric'] == 'token_f1'}
  free -= {r['source'] for r in rows if r['metric'] == 'exact_match' and r['value'] > 0} - spans
  for row in rows:
    if row['metric'] in ('exact_match', 'normalized_match') and row['source'] in free:
      continue
    if 'chance' in row and not {'of', 'control'} & set(row) and 'interval' in row:
      key = (row['split'], row['task'], row['source'])
      if row.get('n', 0) > best.setdefault(key, row).get('n', 0):
        best[key] = row
  split = 'test' if any(row['split'] == 'test' for row in best.values()) else 'valid'
  chosen = [row for row in best.values() if row['split'] == split]
  sources = [row['source'] for row in chosen]
  for row in chosen:
    if row['metric'] == 'bleu':  # points of 100, which are no percentages
      yield bleu(row)
      continue
    low, high = row['interval']
    interval = f'{low:.1%} to {high:.1%}, chance {row["chance"]:.0%}'
    if len(row.get('runs', ())) > 1:
      interval += f', {len(row["runs"])} runs'
    if 'before' in row:  # of the runs that these started from
      interval += f', before {row["before"]:.0%}'
    if row['metric'] == 'token_f1' or 'difference' in row:
      interval += f', {row.get("baseline_of", "nearest neighbor")} {row["baseline"]:.1%}'
    if 'difference' in row:
      interval += f', difference {signed(row["difference"], row["difference_interval"])}'
    task = f' ({row["task"]})' if sources.count(row['source']) > 1 else ''
    task += {'token_f1': ' token F1', 'rouge1': ' ROUGE-1'}.get(row['metric'], '')
    yield f'{row["source"]}{task} {row["value"]:.1%} ({interval})'


def bleu(row):
  """BLEU of a source with its interval, and beside its baseline."""
  low, high = row['interval']
  text = f'{low:.1f} to {high:.1f}'
  if len(row.get('runs', ())) > 1:
    text += f', {len(row["runs"])} runs'
  if 'difference' in row:
    text += f', {row["baseline_of"]} {row["baseline"]:.1f}'
  return f'{row["source"]} BLEU {row["value"]:.1f} ({text})'


def prompted(result):
  """The base of a run with examples in its prompt: the best of benchmarks/few_shot.py."""
  rows = [row for row in result.get('few_shot', ()) if row['metric'] in ('token_f1', 'rouge1')]
  if rows:
    row = max(rows, key=lambda row: row['value'])
    difference = signed(row['run_minus_base'], row['difference_interval'])
    yield f'its base with {row["shots"]} examples {row["value"]:.1%} (difference {difference})'


def signed(difference, interval):
  """Format a difference in points with its interval."""
  low, high = interval
  return f'{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})'


def minutes(result):
  """Minutes from start to end, with evaluation, sampling and report; without pauses between sessions."""
  if 'minutes' in result:  # the sum of several runs
    return result['minutes']
  if result.get('sessions', 1) > 1:
    return result['numbers']['seconds'] / result['numbers']['goodput'] / 60
  ends = [datetime.datetime.fromisoformat(result[key]) for key in ('started', 'finished')]
  return (ends[1] - ends[0]).total_seconds() / 60


def run_minutes(result):
  """Minutes of a run: their mean where a result is that of several."""
  runs = result['numbers']['evaluations'][0]['runs'] if 'minutes' in result else ()
  return minutes(result) / max(len(runs), 1)


def read_docs():
  """The text of README and docs/, with links as from the root."""
  return '\n'.join(page.read_text().replace('](../', '](') for page in DOCS)


def highlights_table():
  """Markdown table of a few runs."""
  lines = ['| | | minutes a run |', '|---|---|---|']
  for name in HIGHLIGHTS:
    result = json.loads((RESULTS / f'{name}.json').read_text())
    file = f'[{result["claim"]}](benchmarks/results/{name}.json)'
    lines.append(f'| {file} | {headline(result)} | {run_minutes(result):.0f} |')
  return '\n'.join(lines)


def results_table():
  """Markdown table of runs."""
  lines = ['| what | result | minutes a run | hardware | command |', '|---|---|---|---|---|']
  for path in sorted(RESULTS.glob('*.json')):
    result = json.loads(path.read_text())
    file = f'[{result["claim"]}](benchmarks/results/{path.name})'
    command = result['command'].removeprefix('python ')
    lines.append(
      f'| {file} | {headline(result)} | {run_minutes(result):.1f} | {result["hardware"]} | `{command}` |'
    )
  return '\n'.join(lines)


def studies_table():
  """Markdown table of studies; a test judges their recorded headlines again by the present analysis."""
  lines = ['| study | verdict | runs | minutes | gain of pairing | hardware |', f'|{"---|" * 6}']
  for path in sorted(STUDIES.glob('*.json')):
    result = json.loads(path.read_text())
    if 'headline' in result:
      study = shipped_study(result)
      tuning = f' + {n} to tune' if (n := result.get('tuning_runs')) else ''
      lines.append(
        f'| [{study.question}](benchmarks/results/ablations/{path.stem}.md) '
        f'| {result["headline"]} | {result["runs"]}{tuning} | {minutes(result):.0f} '
        f'| {result["pairing"]["gain"]:.2g} | {result["hardware"]} |'
      )
  return '\n'.join(lines)


def shipped_study(result):
  """The Study of the file that a recorded study's command names, as it is now."""
  return design.load_study(re.search(r'--config=(\S+)', result['command'])[1])


def arms_of(study):
  """The arms of a study; without its budget, as seconds would be measured."""
  return design.make_arms(dataclasses.replace(study, budget=design.Budget()))


def judged_headline(result, study):
  """The headline of a recorded study, judged again from its scores."""
  cost = {arm['name']: {key: arm.get(key) for key in COST} for arm in result['arms']}
  arms = [{key: getattr(arm, key) for key in KEPT} | cost[arm.name] for arm in arms_of(study)]
  factors = {name: list(dict.fromkeys(arm['levels'][name] for arm in arms)) for name in study.factors}
  spec = {key: result[key] for key in ('metric', 'tolerance', 'budget')} | {'better': study.better}
  spec |= {'seeds': study.seed_list, 'sweep': proof.sweep_name(study.sweep), 'factors': factors, 'arms': arms}
  rows = [
    {'arm': arm['name'], 'seed': int(seed), 'status': 'done', 'result': {result['metric']: value}}
    for arm in result['arms']
    for seed, value in arm['values'].items()
  ]
  return study_results.headline(study_results.StudyResults(spec, rows, analyze.analyze(spec, rows)))


def duration(seconds):
  """Format seconds, as in '47.7 ms' or '19.2 s'."""
  return f'{seconds:.1f} s' if seconds >= 10 else f'{1e3 * seconds:,.4g} ms'


def speed_table():
  """Markdown table of speed ratios to the peers."""
  lines = ['| what | ours | times as fast as (least to largest turn) | hardware |', '|---|---|---|---|']
  for path in sorted((RESULTS / 'speed').glob('*.json')):
    result = json.loads(path.read_text())
    rows = result['rows'] if isinstance(result.get('rows'), dict) else {}
    compared = {k: row for k, row in rows.items() if isinstance(row, dict) and 'ratios' in row}
    for question, row in compared.items():
      ratios = [(peer, *ratio) for peer, ratio in row['ratios'].items() if ratio]
      peers = '; '.join(
        f'{peer} **{value:.2f}** ({low:.2f} to {high:.2f})' for peer, value, (low, high) in ratios
      )
      if ratios:
        lines.append(
          f'| [{question}](benchmarks/results/speed/{path.name}) '
          f'| {duration(row["rows"]["gpt_jax"]["median"])} | {peers} | {result["hardware"]} |'
        )
  return '\n'.join(lines)


def rows_of(path):
  """Rows of a result file; empty if there is no file."""
  if not path.exists():
    return []
  result = json.loads(path.read_text())
  return result.get('numbers', result)['rows']


def plans_table():
  """Markdown table of plans."""
  lines = [
    '| plan | mesh | memory of a device | a step takes at least, by | if nothing overlaps '
    '| tokens/s | seconds to plan |',
    '|---|---|---|---|---|---|---|',
  ]
  rows = json.loads((RESULTS / 'plan' / 'plans.json').read_text())['numbers']['plans']
  for name, row in rows.items():
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


def gpu_table():
  """Markdown table of the GPU goals."""
  result = json.loads((RESULTS / 'speed' / 'gpu.json').read_text())
  goals = gpu_goals(result['rows']).partition('\n\n')[0]
  return f'{goals}\n\n{result["hardware"]}'


# Zero-shot accuracy on whole test sets: EleutherAI/pythia, evals/pythia-v1/pythia-160m/zero-shot, step
# 123,000 of 143,000; issue 2159 of EleutherAI/lm-evaluation-harness.
PYTHIA_160M = {'winogrande': 0.506, 'lambada': 0.331, 'arc_easy': 0.431, 'piqa': 0.618}
GPT2_124M = {'lambada': 0.326}


def harness_table():
  """Markdown table of lm-eval's scores of Gemma 3 270M, beside published ones of smaller models."""
  numbers = json.loads((RESULTS / 'interop' / 'harness_gemma.json').read_text())['numbers']
  percent = lambda scores, name: f'{100 * scores[name]:.1f}' if name in scores else '-'
  lines = [
    '| Task | Examples | Gemma 3 270M, acc in % | Equal answers | Seconds: ours, Hugging Face '
    '| Pythia-160M | GPT-2 124M |',
    '|---|---|---|---|---|---|---|',
  ]
  for name, row in numbers.items():
    if name != 'peers':
      own = [100 * row['ours'][metric] for metric in ('acc,none', 'acc_stderr,none')]
      lines.append(
        f'| {name} | {row["examples"]} | {own[0]:.1f} ± {own[1]:.1f} | {100 * row["equal"]:.0f} % '
        f'| {row["seconds"]:.0f}, {row["seconds_hf"]:.0f} '
        f'| {percent(PYTHIA_160M, name)} | {percent(GPT2_124M, name)} |'
      )
  return '\n'.join(lines)


def examples_table():
  """The first two test examples of each source of texts: what was asked, and all answers."""
  lines = ['| source | text | reference | baseline | the trained model |', '|---|---|---|---|---|']
  for path in sorted(RESULTS.glob('*.json')):
    counts = collections.Counter()
    for example in json.loads(path.read_text()).get('examples', ()):
      counts[example['source']] += 1
      if counts[example['source']] <= 2:
        texts = (example['condition'], example['references'][0], example.get('baseline', ''), example['run'])
        name = f'[{example["source"]}]({path.relative_to(ROOT)})'
        lines.append(f'| {" | ".join((name, *map(in_cell, texts)))} |')
  return '\n'.join(lines)


def in_cell(text, most=160):
  """A text in a cell of a Markdown table."""
  text = ' '.join(text.split()).replace('|', '\\|')
  return text if len(text) <= most else f'{text[:most].rsplit(" ", 1)[0]} ...'


TABLES = {
  'highlights': highlights_table,
  'results': results_table,
  'examples': examples_table,
  'harness': harness_table,
  'gpu': gpu_table,
  'studies': studies_table,
  'speed': speed_table,
  'growth': lambda: '\n'.join(growth.table(rows_of(growth.FILE))),
  'plans': plans_table,
  'weak_scaling': lambda: '\n'.join(weak_scaling.table(rows_of(weak_scaling.PATH))),
}


def render_tables(page):
  """The text of a page with the tables between its markers made anew."""
  text, root = page.read_text(), os.path.relpath(ROOT, page.parent)
  at = '](' if root == '.' else f']({root}/'
  for name, make in TABLES.items():
    begin, end = MARK.format(name), END.format(name)
    if begin not in text:
      continue
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    text = f'{head}{begin}\n{make().replace("](benchmarks/", f"{at}benchmarks/")}\n{end}{tail}'
  return text


if __name__ == '__main__':
  for page in PAGES:
    page.write_text(render_tables(page))
