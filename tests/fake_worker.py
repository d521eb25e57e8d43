"""A fake training process without JAX: acts out the `fake` behavior of each config."""

import json
import os
import pathlib
import signal
import sys
import time

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))


def act(config, folder, group_size):
  """Act out one run of a group -> its outcome."""
  behavior, folder = config['fake'], pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  cores = sorted(os.sched_getaffinity(0))
  with open(folder / 'began', 'a') as file:
    file.write(json.dumps({'pid': os.getpid(), 'cores': cores}) + '\n')
  (folder / 'config.json').write_text(json.dumps(config))
  attempt = len((folder / 'began').read_text().splitlines())
  if behavior == 'die' or (behavior == 'die once' and attempt == 1):
    os.kill(os.getpid(), signal.SIGKILL)
  if behavior == 'leave':
    print('no such module', file=sys.stderr)
    sys.exit(1)
  if behavior == 'log':  # at config['pace'] seconds per step, four times as fast on one core
    for step in range(1, 400):
      line = {'step': step, 'time': time.time(), 'step_seconds': 0.01}
      with open(folder / 'metrics.jsonl', 'a') as file:
        file.write(json.dumps(line) + '\n')
      time.sleep(config['pace'] / (4 if len(cores) == 1 else 1))
  while behavior == 'wait' and not stopping:
    time.sleep(0.01)
  if behavior == 'hang' or (behavior == 'hang once' and attempt == 1):
    print('{"heartbeat": true}', flush=True)
    time.sleep(600)
  if behavior == 'work slowly':
    for _ in range(8):
      print('{"heartbeat": true}', flush=True)
      time.sleep(0.2)
  if stopping:
    return {'outcome': 'stopped', 'code': 75, 'message': ''}
  if behavior == 'fail':
    return {'outcome': 'failed', 'code': 1, 'message': 'no luck'}
  if behavior == 'diverge':
    return {'outcome': 'diverged', 'code': 1, 'message': 'not finite'}
  steps = config.get('train', {}).get('steps', 1)
  result = {
    'steps': steps,
    'valid_loss': config.get('valid_loss', 1.5),
    'replicas': 1 if behavior == 'done alone' else group_size,
  }
  (folder / 'result.json').write_text(json.dumps(result))
  return {'outcome': 'done', 'code': 0, 'message': ''}


for job in sys.stdin:
  job = json.loads(job)
  print('step 1 and other words', file=sys.stderr, flush=True)
  print('{"no": "answer"}\nnor this', flush=True)
  pairs = list(zip(job['configs'], job['folders'], strict=True))
  print(json.dumps({'outcomes': [act(*pair, len(pairs)) for pair in pairs]}), flush=True)
  if stopping:
    sys.exit(75)
