"""Measure `launch.py serve`: `python -m benchmarks.serving --workdir=RUN [--hf=FOLDER] [--gguf=FILE]`.

RUN is an imported Gemma 3 270M (float32); FOLDER holds the same model for `transformers serve`, FILE for the
server of llama-cpp-python. In turns:

  offline    batches of 8 prompts by sample.generate, in this process
  eight      eight clients that send the same prompts with the same seeds, each its next one at once
  many       32 clients for `--seconds`: errors, fairness, time to the first piece of text, and the share of
             the KV cache that holds tokens: a paged cache could save the rest
  prefix     conversations of several clients whose turns come one after the other, or interleaved: the time
             that a cache of more beginnings than the last could save
  aborted    1,000 streams that are cut after their first piece: memory of the server
  peers      `eight` and `many` (for a minute) against the other servers, where their packages are installed

Each server is a process of its own on the same two cores. Tokens are those that the servers count, or the
events of a stream. Writes results/speed/serving.json after each part; parts that would begin after `--limit`
seconds are left out and named. --tiny trains a model of seconds in the place of RUN, and does little of
everything. Peers: pip install 'transformers[serving]' 'llama-cpp-python[server]'.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import importlib.util
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
PEER_SECONDS = 60.0  # of `many` for each peer
CONVERSATIONS, TURNS = 4, 4
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
          last = (log.read().strip().splitlines() or ['it said nothing'])[-1]
          raise versus.Missing(f'{command[2]} did not start: {last}')
        time.sleep(0.2)
      yield process
    finally:
      process.terminate()
      process.wait(timeout=60)


def is_up(port):
  """Whether /v1/models answers."""
  try:
    return get(port, '/v1/models')[0] == 200
  except OSError:
    return False


def get(port, path):
  """Return (status, content) of a GET."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=5)
  with contextlib.closing(connection):
    connection.request('GET', path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def ask(port, model, text, new, seed, abort=False):
  """Stream one completion -> (seconds to the first piece, tokens, text); abort: cut it there."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=300)
  body = {'model': model, 'prompt': text, 'max_tokens': new, 'seed': seed, 'stream': True}
  body['stream_options'] = {'include_usage': True}
  start, first, tokens, pieces = time.perf_counter(), None, 0, []
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
      pieces += [choice['text'] for choice in event['choices'] if choice.get('text')]
      tokens = (event.get('usage') or {}).get('completion_tokens', tokens)
      if abort:
        break
  return first, tokens or len(pieces), ''.join(pieces)


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
  firsts = [first for own in rows for first, *_ in own if first is not None]
  tokens, counts = sum(tokens for own in rows for _, tokens, _ in own), [len(own) for own in rows]
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


def warm_up(port, model, texts, new):
  """Send texts that are not counted: one, few and many at once compile programs of their own."""
  for clients in (1, 2, BATCH):
    load(port, model, texts[: 2 * clients], new, clients)


def cache_share(port, is_over):
  """Return the mean share of the KV cache that holds tokens, sampled until `is_over` is set."""
  shares = []
  while not is_over.wait(0.5):
    gauges = dict(line.rsplit(b' ', 1) for line in get(port, '/metrics')[1].splitlines() if line[:1] != b'#')
    used, room = (float(gauges[b'gpt_jax_' + name]) for name in (b'cache_tokens', b'cache_room'))
    shares += [used / room] if room else []
  return float(np.mean(shares)) if shares else None


def prefix(port, model, arguments):
  """Time conversations, each with its own system prompt, one after the other and interleaved -> seconds."""
  if arguments.tiny:
    raise versus.Missing('the context of the tiny model is too short')
  words, new, rng, seconds = arguments.words, arguments.new // 4, np.random.default_rng(1), {}
  systems = [' '.join(rng.choice(TEXT.split(), words)) for _ in range(CONVERSATIONS)]
  turns = [(n, t) for n in range(CONVERSATIONS) for t in range(TURNS)]
  for order in ('warm', 'in_turn', 'interleaved'):
    texts, firsts = list(systems), []
    numbers = sorted(turns, key=lambda turn: turn[::-1]) if order == 'interleaved' else turns
    start = time.perf_counter()
    for n, turn in numbers:
      texts[n] += f' Once {turn} '
      first, _, text = ask(port, model, texts[n], new, turn)
      texts[n] += text
      firsts += [first] if turn and first is not None else []  # a first turn is new in any order
    seconds[order] = {'all': time.perf_counter() - start, 'first_token_p50': float(np.median(firsts))}
  gain = 1 - seconds['in_turn']['all'] / seconds['interleaved']['all']
  return {
    'conversations': CONVERSATIONS,
    'turns': TURNS,
    'words_of_system_prompt': words,
    'seconds': {order: seconds[order] for order in ('in_turn', 'interleaved')},
    'most_that_more_beginnings_would_save': gain,
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


def servers(arguments):
  """Return {peer: (the package that it needs, its model, command)} of the peers that were asked for."""
  transformers = [sys.executable, '-m', 'transformers.cli.transformers', 'serve', arguments.hf]
  llama = [sys.executable, '-m', 'llama_cpp.server', f'--model={arguments.gguf}', '--model_alias=gguf']
  llama += ['--n_ctx=2048', f'--n_threads={versus.CORES}', f'--n_threads_batch={versus.CORES}']
  llama += ['--interrupt_requests=False']  # else each request ends the one before it
  peers = {}
  if arguments.hf:
    peers['transformers'] = 'fastapi', arguments.hf, [*transformers, '--device=cpu', '--dtype=float32']
  if arguments.gguf:
    peers['llama_cpp'] = 'llama_cpp', 'gguf', llama
  return peers


def main():
  """Measure the parts, write after each, print."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', default='')
  parser.add_argument('--hf', default='', help='folder of the same model for transformers')
  parser.add_argument('--gguf', default='', help='file of the same model for llama.cpp')
  parser.add_argument('--new', type=int, default=64, help='most tokens of an answer')
  parser.add_argument('--rounds', type=int, default=3, help='batches of 8 prompts')
  parser.add_argument('--seconds', type=float, default=300.0)
  parser.add_argument('--aborted', type=int, default=1000)
  parser.add_argument('--words', type=int, default=300, help='of the system prompts of `prefix`')
  parser.add_argument('--limit', type=float, default=840.0, help='seconds after which no part begins')
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--out', type=Path, default=OUT)
  arguments, start, rows = parser.parse_args(), time.monotonic(), {}

  def measure(part, work):
    late = time.monotonic() - start > arguments.limit
    try:
      rows[part] = {'missing': 'no time was left'} if late else work()
    except versus.Missing as missing:
      rows[part] = {'missing': str(missing)}
    print(json.dumps({part: rows[part]}), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    claim = 'a server with continuous batching against batches of 8, and beside other servers'
    name = 'tiny' if arguments.tiny else Path(arguments.workdir).name
    result = versus.result_content('serving', claim, {name: rows})
    arguments.out.write_text(json.dumps(result, indent=1) + '\n')
    return rows[part]

  with tempfile.TemporaryDirectory() as folder:
    if arguments.tiny:
      arguments.workdir, arguments.new, arguments.rounds = tiny_run(folder), 12, 2
      arguments.seconds, arguments.aborted = 3.0, 40
    texts = prompts(BATCH * arguments.rounds, arguments.tiny)
    alone = measure('offline', lambda: offline(arguments.workdir, texts, arguments.new))
    eight = measure_ours(measure, texts, arguments)
    measure('eight_to_offline', lambda: eight['tokens_per_second'] / alone['tokens_per_second'])
    for peer, (package, model, command) in servers(arguments).items():
      measure_peer(measure, peer, package, model, command, texts, arguments)


def measure_ours(measure, texts, arguments):
  """Measure all parts of our server -> `eight`."""
  port, model = bootstrap.free_port(), Path(arguments.workdir).resolve().name
  command = [sys.executable, 'launch.py', 'serve', f'--workdir={arguments.workdir}', f'--port={port}']
  with server([*command, f'--slots={BATCH}'], port) as process:
    warm_up(port, model, texts, arguments.new)
    eight = measure('eight', lambda: load(port, model, texts, arguments.new, BATCH))

    def many():
      is_over = threading.Event()
      with concurrent.futures.ThreadPoolExecutor() as pool:
        share = pool.submit(cache_share, port, is_over)
        try:
          numbers = load(port, model, texts, arguments.new, CLIENTS, arguments.seconds)
        finally:
          is_over.set()
        return numbers | {'share_of_cache_with_tokens': share.result()}

    measure('many', many)
    measure('prefix', lambda: prefix(port, model, arguments))
    work = lambda: aborted(process, port, model, texts[0], arguments.new, arguments.aborted)
    measure('aborted', work)
  return eight


def measure_peer(measure, peer, package, model, command, texts, arguments):
  """Measure eight clients and many against another server."""
  port = bootstrap.free_port()

  def all_parts():
    if importlib.util.find_spec(package) is None:
      raise versus.Missing(f'{package} is not installed')
    seconds = min(arguments.seconds, PEER_SECONDS)
    with server([*command, f'--port={port}'], port):
      warm_up(port, model, texts, arguments.new)
      return {
        'eight': load(port, model, texts, arguments.new, BATCH),
        'many': load(port, model, texts, arguments.new, CLIENTS, seconds),
      }

  measure(peer, all_parts)


if __name__ == '__main__':
  main()
