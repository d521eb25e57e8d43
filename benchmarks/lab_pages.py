"""How long the pages of `launch.py lab` take: `python -m benchmarks.lab_pages [--tiny]`.

Writes synthetic runs (200 of 100 points, and 10 of 10,000 points), starts the lab in a process of its own and
measures, over HTTP and, where chromium and playwright are here, in the browser:
  table        /api/runs of all runs: first request after the start, and a later one
  first paint  of the page of runs, and until its table is there
  compare      curves of the ten long runs on tokens, smoothed: first request, and a later one; until all
               charts are drawn
Writes results/speed/lab_pages.json.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np

from benchmarks import versus
from benchmarks.record import RESULTS
from gpt_jax.runs import records

OUT = RESULTS / 'speed' / 'lab_pages.json'
CONFIG = {
  'model': {f'setting_{n}': n for n in range(60)} | {'layers': 6, 'width': 384},
  'data': {'mixture': {'text': {'kind': 'text', 'path': 'book.txt', 'template': '{text}'}}},
  'sample': {f'setting_{n}': n for n in range(20)},
}


def write_run(folder, points, seed):
  """Write a finished run with this many lines of metrics."""
  random = np.random.default_rng(seed)
  folder.mkdir(parents=True)
  config = CONFIG | {'optim': {'lr': 10 ** -random.uniform(2, 4)}, 'train': {'steps': points, 'seed': seed}}
  records.write_json(folder / 'config.json', config)
  loss, lines = 6.0, []
  for step in range(1, points + 1):
    loss += 0.002 * random.normal() - 0.0003 * (loss - 1.2)
    row = {
      'step': step,
      'time': 1.7e9 + step,
      'loss': loss,
      'grad_norm': 1.0,
      'lr': 1e-3,
      'tokens': 4096.0 * step,
    }
    row |= {'tokens_per_second': 4e4, 'step_seconds': 0.1} | (
      {'valid_loss': loss + 0.1} if step % 50 == 0 else {}
    )
    lines.append(records.format_object(row))
  (folder / 'metrics.jsonl').write_bytes(b''.join(lines))
  event = {'time': '2026-01-01T00:00:00.000Z', 'event': 'start', 'step': 0}
  (folder / 'events.jsonl').write_bytes(records.format_object(event))
  result = {
    'steps': points,
    'loss': loss,
    'valid_loss': loss + 0.1,
    'tokens': 4096.0 * points,
    'seconds': 9.0,
  }
  records.write_json(folder / 'result.json', result)


@contextlib.contextmanager
def lab(root):
  """Start the lab over a folder and yield its address."""
  command = [sys.executable, 'launch.py', 'lab', f'--root={root}', '--port=0']
  with subprocess.Popen(command, cwd=versus.ROOT, stdout=subprocess.PIPE, text=True) as process:
    try:
      yield re.search(r'http://\S+', process.stdout.readline()).group()
    finally:
      process.terminate()


def request(address, path, **query):
  """Return (seconds, answer) of a GET."""
  start = time.perf_counter()
  with urllib.request.urlopen(f'{address}{path}?{urllib.parse.urlencode(query, True)}') as response:
    content = response.read()
  return time.perf_counter() - start, json.loads(content)


def in_browser(address, runs, repeats):
  """Return the seconds of pages in chromium, {} where it or playwright is missing."""
  chromium = shutil.which('chromium')
  try:
    from playwright.sync_api import sync_playwright
  except ImportError:
    return {}
  if not chromium:
    return {}
  paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
  seconds = {'first_paint': [], 'table_there': [], 'compare_drawn': []}
  with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
    for _ in range(repeats):
      page = browser.new_page()
      start = time.perf_counter()
      page.goto(address)
      page.wait_for_selector('table.runs tbody tr')
      seconds['table_there'].append(time.perf_counter() - start)
      seconds['first_paint'].append(page.evaluate(paint))
      page.close()
      page = browser.new_page()
      query = urllib.parse.urlencode({'run': runs, 'x': 'tokens', 'smooth': 0.02}, True)
      start = time.perf_counter()
      page.goto(f'{address}/#/compare?{query}')
      page.wait_for_selector('.charts .chart:nth-child(2) svg path')
      seconds['compare_drawn'].append(time.perf_counter() - start)
      page.close()
    browser.close()
  return seconds


def measure(root, runs, long_runs, points, repeats):
  """Write the runs, start the lab, and return {name: seconds}."""
  for n in range(runs):
    write_run(root / f'grid/lr{n:03}', 100, n)
  names = [f'long/seed{n}' for n in range(long_runs)]
  for n, name in enumerate(names):
    write_run(root / name, points, n)
  with lab(root) as address:
    first, table = request(address, '/api/runs')
    assert table['count'] == runs + long_runs
    curves = lambda: request(address, '/api/curves', run=names, x='tokens', smooth=0.02)
    compare, found = curves()
    assert [len(chart['lines']) for chart in found['charts']] == [long_runs, long_runs]
    later = {'table': request(address, '/api/runs')[0], 'compare': curves()[0]}
    browser = in_browser(address, names, repeats)
  return {'http_first': {'table': first, 'compare': compare}, 'http_later': later, 'browser': browser}


def main():
  """Measure, write, print."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--runs', type=int, default=200)
  parser.add_argument('--long_runs', type=int, default=10)
  parser.add_argument('--points', type=int, default=10_000)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--tiny', action='store_true', help='3 runs and 2 of 300 points, once')
  parser.add_argument('--out', type=Path, default=OUT)
  args = parser.parse_args()
  sizes = (3, 2, 300, 1) if args.tiny else (args.runs, args.long_runs, args.points, args.repeats)
  with tempfile.TemporaryDirectory() as folder:
    seconds = measure(Path(folder) / 'runs', *sizes)
  names = ('runs', 'long_runs', 'points', 'repeats')
  rows = {'sizes': dict(zip(names, sizes, strict=True)), 'seconds': seconds}
  args.out.parent.mkdir(parents=True, exist_ok=True)
  claim = 'seconds until pages of the lab are there'
  args.out.write_text(json.dumps(versus.result_content('lab_pages', claim, rows), indent=1) + '\n')
  print(json.dumps(seconds, indent=2))


if __name__ == '__main__':
  main()
