"""`launch.py serve` as a user starts it: text as `sample` prints it, and an end by Ctrl-C."""

import contextlib
import http.client
import json
import re
import signal

import pytest

pytest.importorskip('starlette', reason='starlette is not installed: pip install .[serve]')
pytest.importorskip('uvicorn', reason='uvicorn is not installed: pip install .[serve]')

from tests import command_line


@pytest.mark.slow
def test_a_served_stream_is_what_sample_prints(tmp_path):
  workdir = tmp_path / 'run'
  code, output = command_line.launch(
    'train', f'--config={command_line.experiment(tmp_path)}', f'--workdir={workdir}', folder=tmp_path
  )
  assert code == 0, output
  options = ('--temperature=0.9', '--top_k=20')
  asked = ('--prompt=a', '--seed=5', '--max_new_tokens=12')
  code, printed = command_line.launch('sample', f'--workdir={workdir}', *asked, *options, folder=tmp_path)
  assert code == 0, printed
  process = command_line.start('serve', f'--workdir={workdir}', '--port=0', *options, folder=tmp_path)
  try:
    line = process.stdout.readline()
    port = int(re.search(r'http://127\.0\.0\.1:(\d+)/v1 \(models, completions\)', line)[1])
    body = {'prompt': 'a', 'seed': 5, 'max_tokens': 12, 'stream': True}
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    with contextlib.closing(connection):
      connection.request('POST', '/v1/completions', json.dumps(body), {'Content-Type': 'application/json'})
      with connection.getresponse() as answer:
        events = [line[6:] for line in answer if line.startswith(b'data: {')]
    text = ''.join(json.loads(event)['choices'][0]['text'] for event in events)
    assert printed == f'a{text}\n' and len(events) > 1
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
  finally:
    process.kill()
    process.stdout.close()
