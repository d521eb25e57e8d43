"""Measure `launch.py serve`: `python -m benchmarks.serving --workdir=RUN [--hf=FOLDER]`.

RUN is an imported Gemma 3 270M (float32); FOLDER holds the same model for `transformers serve`. In turns:

  offline    batches of 8 prompts by sample.generate, in this process
  eight      eight clients that send the same prompts with the same seeds, each its next one at once
  many       32 clients for `--seconds`: errors, fairness, time to the first piece of text
  aborted    1,000 streams that are cut after their first piece: memory of the server
  peer       `eight` and `many` against transformers' server, where `transformers[serving]` is installed

Each server is a process of its own. Tokens are those that the servers count. Writes
results/speed/serving.json after each part. --tiny trains a model of seconds in the place of RUN, and does
little of everything.
"""

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import versus
from benchmarks.record import RESULTS
from gpt_jax.cluster import bootstrap

OUT = RESULTS / 'speed' / 'serving.json'
BATCH, CLIENTS = 8, 32
TEXT = 'The river Once In summer a small She opened Every morning He said that the old My favorite'


def prompts(count, is_tiny):
  """Texts of different lengths; sums for the tiny model."""
  rng = np.random.default_rng(0)
  if is_tiny:
    return [f'{a}+{b}' for a, b in rng.integers(10, 99, (count, 2))]
  return [' '.join(rng.choice(TEXT.split(), n)) for n in rng.integers(3, 24, count)]


def offline(workdir, texts, new):
  """Generate all texts in batches of 8 -> tokens a second; compilation is not counted."""
  import jax.numpy as jnp

  import gpt_jax
  from gpt_jax import sample
  from gpt_jax.sampling import completions, decoding_layout, prompts, validate

  run = gpt_jax.load(workdir)
  run = run._replace(model=decoding_layout.prepare_model(run.model, donate=True))
  cfg = validate.override(run.cfg.sample, max_new_tokens=new, num_samples=1)
  grammar = completions.build_grammar(run.tokenizers, run.model.cfg.V)

  def generate(first):
    batch = [prompts.build_prompt(run, text) for text in texts[first : first + BATCH]]
    seeds = range(first, first + len(batch))
    keys_B = jnp.concatenate([sample.row_keys(seed, 1) for seed in seeds])
    state = sample.generate(run.model, batch, cfg, grammar, keys_B)
    return sum(len(ids) for ids, _ in completions.new_tokens(state, batch, 1))

  for first in range(0, len(texts), BATCH):
    generate(first)
  start = time.perf_counter()
  tokens = sum(generate(first) for first in range(0, len(texts), BATCH))
  return {'tokens': tokens, 'tokens_per_second': tokens / (time.perf_counter() - start)}


@contextlib.contextmanager
def server(command, port):
  """Start a server and wait until it answers -> its process."""
  environment = os.environ | versus.ENVIRONMENT
  with tempfile.TemporaryFile('w+') as log:
    process = subprocess.Popen(
      command, cwd=versus.ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
      end = time.monotonic() + 300
      while not is_up(port):
        if process.poll() is not None or time.monotonic() > end:
          log.seek(0)
          raise versus.Missing(f'{command[2]} did not start: {log.read()[-400:]}')
        time.sleep(0.2)
      yield process
    finally:
      process.terminate()
      process.wait(timeout=60)


def is_up(port):
  """Whether /health answers."""
  try:
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=2)
    connection.request('GET', '/health')
    return connection.getresponse().status == 200
  except OSError:
    return False


def ask(port, model, text, new, seed, abort=False):
  """Stream one completion -> (seconds to the first piece, tokens); abort: cut it there."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=300)
  body = {'model': model, 'prompt': text, 'max_tokens': new, 'seed': seed, 'stream': True}
  body['stream_options'] = {'include_usage': True}
  start, first, tokens = time.perf_counter(), None, 0
  with contextlib.closing(connection):
    connection.request('POST', '/v1/completions', json.dumps(body), {'Content-Type': 'application/json'})
    answer = connection.getresponse()
    if answer.status != 200:
      raise RuntimeError(f'{answer.status} {answer.read()[:200]}')
    for line in answer:
      if not line.startswith(b'data: {'):
        continue
      event = json.loads(line[6:])
      if 'error' in event:
        raise RuntimeError(event['error']['message'])
      first = first or time.perf_counter() - start
      tokens = (event.get('usage') or {}).get('completion_tokens', tokens)
      if abort:
        break
  return first, tokens


def load(port, model, texts, new, clients, seconds=0.0):
  """Send texts from so many clients -> numbers; each text once, or again and again for `seconds`."""
  lock, rows, errors = threading.Lock(), [[] for _ in range(clients)], []
  numbers, start = iter(range(10**9) if seconds else range(len(texts))), time.perf_counter()

  def work(rows):
    while not seconds or time.perf_counter() - start < seconds:
      with lock:
        n = next(numbers, None)
      if n is None:
        return
      try:
        rows.append(ask(port, model, texts[n % len(texts)], new, n))
      except (OSError, RuntimeError, http.client.HTTPException, ValueError) as error:
        errors.append(f'{type(error).__name__}: {error}'[:200])

  threads = [threading.Thread(target=work, args=[own]) for own in rows]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  duration = time.perf_counter() - start
  firsts = [first for own in rows for first, _ in own if first is not None]
  tokens, counts = sum(tokens for own in rows for _, tokens in own), [len(own) for own in rows]
  first = dict(zip(('p50', 'p95'), np.percentile(firsts, (50, 95)).tolist(), strict=True)) if firsts else {}
  return {
    'clients': clients,
    'seconds': duration,
    'requests': sum(counts),
    'errors': len(errors),
    'error_examples': errors[:3],
    'requests_of_a_client': [min(counts), max(counts)],
    'tokens': tokens,
    'tokens_per_second': tokens / duration,
    'first_token_seconds': first,
  }


def aborted(process, port, model, text, new, count):
  """Cut streams after their first piece -> memory of the server in MiB after each tenth of them."""
  import psutil

  memory, server_process = [], psutil.Process(process.pid)

  def work(share):
    for seed in share:
      ask(port, model, text, new, seed, abort=True)

  for tenth in np.array_split(np.arange(count), 10):
    threads = [threading.Thread(target=work, args=[part.tolist()]) for part in np.array_split(tenth, BATCH)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    memory.append(server_process.memory_info().rss / 2**20)
  return {
    'streams': count,
    'memory_mib': memory,
    'growth_mib_of_last_half': memory[-1] - memory[len(memory) // 2],
  }


def tiny_run(folder):
  """Train a model of seconds -> its run folder."""
  workdir = Path(folder) / 'sums'
  command = [sys.executable, 'launch.py', 'train', '--config=experiments/sums.py:runlocal']
  subprocess.run([*command, f'--workdir={workdir}'], cwd=versus.ROOT, check=True, stdout=subprocess.DEVNULL)
  return workdir


def main():
  """Measure the parts, write after each, print."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', default='')
  parser.add_argument('--hf', default='', help='folder of the same model for transformers')
  parser.add_argument('--new', type=int, default=64, help='most tokens of an answer')
  parser.add_argument('--rounds', type=int, default=6, help='batches of 8 prompts')
  parser.add_argument('--seconds', type=float, default=300.0)
  parser.add_argument('--aborted', type=int, default=1000)
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--out', type=Path, default=OUT)
  arguments = parser.parse_args()
  rows = {}

  def save(**parts):
    rows.update(parts)
    print(json.dumps(parts), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    claim = 'a server with continuous batching against batches of 8, and beside transformers'
    name = 'tiny' if arguments.tiny else Path(arguments.workdir).name
    result = versus.result_content('serving', claim, {name: rows})
    arguments.out.write_text(json.dumps(result, indent=1) + '\n')

  with tempfile.TemporaryDirectory() as folder:
    if arguments.tiny:
      arguments.workdir, arguments.new, arguments.rounds = tiny_run(folder), 12, 2
      arguments.seconds, arguments.aborted = 3.0, 40
    texts = prompts(BATCH * arguments.rounds, arguments.tiny)
    save(offline=offline(arguments.workdir, texts, arguments.new))
    port, model = bootstrap.free_port(), Path(arguments.workdir).resolve().name
    command = [sys.executable, 'launch.py', 'serve', f'--workdir={arguments.workdir}', f'--port={port}']
    with server([*command, f'--slots={BATCH}'], port) as process:
      measure(save, '', port, model, texts, arguments)
      ratio = rows['eight']['tokens_per_second'] / rows['offline']['tokens_per_second']
      save(eight_to_offline=ratio)
      save(aborted=aborted(process, port, model, texts[0], arguments.new, arguments.aborted))
    if arguments.hf:
      port = bootstrap.free_port()
      command = [
        sys.executable,
        '-m',
        'transformers.cli.transformers',
        'serve',
        arguments.hf,
        f'--port={port}',
      ]
      try:
        with server([*command, '--device=cpu', '--dtype=float32'], port):
          measure(save, 'peer_', port, arguments.hf, texts, arguments)
      except versus.Missing as missing:
        save(peer=str(missing))


def measure(save, prefix, port, model, texts, arguments):
  """Measure eight clients and many; the first round compiles and is not counted."""
  load(port, model, texts, arguments.new, BATCH)
  save(**{f'{prefix}eight': load(port, model, texts, arguments.new, BATCH)})
  save(**{f'{prefix}many': load(port, model, texts, arguments.new, CLIENTS, arguments.seconds)})


if __name__ == '__main__':
  main()
