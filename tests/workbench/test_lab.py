"""The lab's pages of runs and comparisons, over folders written here; and what it refuses."""

import fcntl
import json
import socket
import time

import numpy as np
import pytest

from gpt_jax.runs import records
from gpt_jax.workbench.lab import app, index, live, security
from gpt_jax.workbench.lab.tail import Tail, column

pytest.importorskip('starlette', reason='starlette is not installed: pip install .[lab]')
testclient = pytest.importorskip('starlette.testclient', reason='httpx is not installed: pip install httpx')

NASTY = '<img src=x onerror=alert(1)>'
ORIGIN = 'http://127.0.0.1:8017'


def write_run(folder, steps=12, done=True, lr=1e-3, start=None, total=None, **more):
  """A run folder with curves, one text sample and a result."""
  start = time.time() - 60 if start is None else start
  folder.mkdir(parents=True)
  config = {'optim': {'lr': lr}, 'train': {'steps': total or steps, 'job': 'gpt'}, 'model': {'layers': 2}}
  records.write_json(folder / 'config.json', config)
  lines = []
  for step in range(1, steps + 1):
    row = {'step': step, 'time': start + step, 'loss': 4 / step + lr, 'tokens': 10.0 * step}
    lines.append(records.format_object(row | ({'valid_loss': 3.0} if step % 4 == 0 else {})))
  (folder / 'metrics.jsonl').write_bytes(b''.join(lines))
  when = lambda seconds: time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds)) + '.000Z'
  records.append_line(folder / 'events.jsonl', {'time': when(start), 'event': 'start', 'step': 0})
  (folder / 'samples').mkdir()
  (folder / 'samples' / f'step_{steps:08}.txt').write_text(f'{NASTY} of {folder.name}')
  if done:
    records.append_line(
      folder / 'events.jsonl', {'time': when(start + steps), 'event': 'done', 'step': steps}
    )
    result = {
      'steps': steps,
      'loss': 4 / steps,
      'valid_loss': 3.0,
      'tokens': 10.0 * steps,
      'flops': 1e6 * steps,
    }
    records.write_json(folder / 'result.json', result | more)
  return folder


@pytest.fixture
def root(tmp_path):
  root = tmp_path / 'runs'
  write_run(root / 'base')
  write_run(root / 'tuned', lr=1e-4)
  write_run(root / NASTY, lr=1e-2, done=False, total=100)
  parent = {'how': 'train.init_from', 'path': str(root / 'base'), 'step': 12, 'tokens': 120.0}
  source = {'how': 'import', 'path': 'openai/gpt2'}
  records.write_json(root / 'tuned' / 'parents.json', {'parents': [parent, source]})
  return root


@pytest.fixture
def client(root):
  return testclient.TestClient(app.build_app(root), base_url=ORIGIN)


def get(client, path, **query):
  response = client.get(path, params=query)
  assert response.status_code == 200, response.text
  return response.json()


def test_runs_are_listed_with_their_states_and_chosen_columns(client, root):
  table = get(client, '/api/runs')
  assert [row['name'] for row in table['rows']] == [NASTY, 'base', 'tuned']
  assert [row['state'] for row in table['rows']] == ['stopped', 'done', 'done']
  assert table['columns'][0] == 'optim.lr'
  assert table['rows'][1]['cells'][0] == 1e-3
  assert table['rows'][0]['step'] == 12
  assert table['rows'][0]['steps'] == 100
  table = get(client, '/api/runs', column=['lr', 'tokens'], where="lr < 1e-3 and state = 'done'")
  assert table['columns'] == ['optim.lr', 'tokens']
  assert [(row['name'], row['cells']) for row in table['rows']] == [('tuned', [1e-4, 120.0])]


def test_a_broken_run_does_not_hide_the_others(client, root):
  for name, content in (('a', '{"train": 3, "data": [], "sample": 0}'), ('b', '{'), ('c', '[]')):
    (root / f'broken_{name}').mkdir()
    (root / f'broken_{name}' / 'config.json').write_text(content)
    (root / f'broken_{name}' / 'metrics.jsonl').write_text('{"step": "x"}\n[]\n{"step": NaN}\n7\n')
    (root / f'broken_{name}' / 'events.jsonl').write_text('{"event": 3}\n{"event": "start", "time": []}\n')
  states = {row['name']: row['state'] for row in get(client, '/api/runs')['rows']}
  assert states == {NASTY: 'stopped', 'base': 'done', 'tuned': 'done'} | {
    'broken_a': 'stopped',
    'broken_b': 'failed',
    'broken_c': 'failed',
  }
  assert get(client, '/api/models')['models'] == []
  assert 'fix: ' not in client.get('/api/data', params={'run': 'broken_a'}).json()['error']
  assert get(client, '/api/curves', run=['broken_a', 'base'])['charts'][0]['lines'][0]['run'] == 'base'


def test_a_wrong_condition_is_answered_with_a_fix(client):
  response = client.get('/api/runs', params={'where': 'learning_rate > 1'})
  assert response.status_code == 400
  assert 'learning_rate' in response.json()['error']
  assert 'optim.lr' in response.json()['fix']


def test_conditions_cannot_change_or_attach_anything(client, root):
  for where in ("1); attach database '/tmp/x.db' as x; --", '1) union select 1; --', "load_extension('x')"):
    assert client.get('/api/runs', params={'where': where}).status_code == 400


def test_the_tree_links_runs_and_imports(client):
  tree = get(client, '/api/tree')
  assert {node['id']: node['run'] for node in tree['nodes']} == {
    'tuned': 'tuned',
    'base': 'base',
    'import:openai/gpt2': '',
  }
  assert {'from': 'base', 'to': 'tuned', 'how': 'init_from@12'} in tree['links']


def test_the_page_of_a_run_is_its_report_with_texts_escaped(client):
  page = get(client, '/api/run', run=NASTY)
  assert NASTY not in page['html']
  assert '&lt;img src=x onerror' in page['html']
  assert page['state']['state'] == 'stopped'


def test_curves_share_an_axis(client):
  runs = ['base', 'tuned']
  found = get(client, '/api/curves', run=runs, metric=['loss', 'valid_loss'], x='tokens')
  [loss, valid] = found['charts']
  assert [line['run'] for line in loss['lines']] == runs
  np.testing.assert_allclose(loss['lines'][0]['x'], 10.0 * np.arange(1, 13))
  np.testing.assert_allclose(loss['lines'][0]['y'], 4 / np.arange(1, 13) + 1e-3, rtol=1e-5)
  assert valid['lines'][1]['x'] == [40, 80, 120]
  [line, _] = get(client, '/api/curves', run=runs, x='FLOPs')['charts'][0]['lines']
  np.testing.assert_allclose(line['x'], 1e6 * np.arange(1, 13))
  found = get(client, '/api/curves', run=[NASTY], x='FLOPs')
  assert not found['charts'][0]['lines']
  assert found['notes'] == [f'{NASTY} has no FLOPs']


def test_pauses_between_sessions_are_no_work(root, client):
  folder = write_run(root / 'paused', start=1e9)
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  for line in lines[6:]:
    line['time'] += 3600
  content = b''.join(
    records.format_object({k: v for k, v in line.items() if k != 'sha256'}) for line in lines
  )
  (folder / 'metrics.jsonl').write_bytes(content)
  start = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(1e9 + 3606)) + '.000Z'
  records.append_line(folder / 'events.jsonl', {'time': start, 'event': 'resume', 'step': 6})
  [line] = get(client, '/api/curves', run=['paused'], metric='loss', x='hours')['charts'][0]['lines']
  np.testing.assert_allclose(np.array(line['x']) * 3600, np.arange(1, 13), atol=1e-2)


def test_settings_that_differ(client):
  found = get(client, '/api/diff', run=['base', 'tuned', NASTY])
  assert found['rows'] == [['optim.lr', '0.001', '0.0001', '0.01'], ['train.steps', '12', '12', '100']]


def test_samples_stand_side_by_side_and_only_these_files_are_served(client, root):
  (root / 'base' / 'samples' / 'step_00000012_seven.png').write_bytes(b'\x89PNG\r\n')
  found = get(client, '/api/samples', run=['base', 'tuned'])
  assert found['names'] == ['seven (image)', 'text']
  assert found['columns'][1]['samples']['text']['text'] == f'{NASTY} of tuned'
  response = client.get('/file', params={'run': 'base', 'file': 'step_00000012_seven.png'})
  assert (response.status_code, response.headers['content-type']) == (200, 'image/png')
  secret = root.parent / 'secret.txt'
  secret.write_text('secret')
  (root / 'base' / 'samples' / 'step_00000013_link.txt').symlink_to(secret)
  for run in ('base', '..', '../runs/base', '/etc', str(root / 'base'), 'base/../base', 'base\0'):
    for file in ('../config.json', '../../../secret.txt', 'step_00000013_link.txt', '/etc/passwd', ''):
      response = client.get('/file', params={'run': run, 'file': file})
      assert response.status_code == 404
      assert 'secret' not in response.text.replace('secret.txt', '')
  assert client.get('/static/..%2f..%2fapp.py').status_code == 404
  assert client.get('/static/../../app.py').status_code == 404


# ------------------------------------------------------------------------------- states of runs


def test_a_lock_tells_a_running_training_from_one_that_was_killed(root):
  folder = write_run(root / 'live', done=False, total=112, start=time.time() - 12)
  runs = index.Index(root)
  assert runs.states()['live']['state'] == 'stopped'
  with records.locked(folder):
    state = runs.states()['live']
    assert state['state'] == 'running'
    assert 60 < state['eta'] <= 100  # 100 steps of a second
    with (folder / '.lock').open() as file, pytest.raises(BlockingIOError):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lab did not break the lock
    hour = live.describe(folder, 'unfinished', {}, [], [], live.locked_inodes(), time.time() + 3600)
    assert hour['state'] == 'hung'
  (folder / '.lock').write_text('process 1 on another-machine')
  assert runs.states()['live']['state'] == 'running'  # its last record is recent
  old = live.describe(folder, 'unfinished', {}, [], [], set(), time.time() + 3600)
  assert old['state'] == 'stopped'


def test_only_new_records_are_parsed_and_rewritten_ones_replaced(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  tail, lines = Tail(path), records.StepLines(path)
  assert tail.read() == []
  for step in range(300):
    lines.add({'step': step, 'loss': float(step)})
    if step % 50 == 0:
      assert len(tail.read()) == step + 1
  lines.add({'step': 290, 'valid_loss': float('nan')})
  with path.open('ab') as file:
    file.write(b'{"step": 300, "lo')
  assert tail.read() == [*map(without_digest, path.read_bytes().splitlines()[:300])]
  places, values = column(tail.read(), 'valid_loss')
  assert places == [290]
  assert np.isnan(values).all()
  lines = records.StepLines(path, 100)  # rewound, then trained again with other losses
  for step in range(101, 320):
    lines.add({'step': step, 'loss': -1.0})
  assert [row['loss'] for row in tail.read()] == [*map(float, range(101)), *[-1.0] * 219]
  path.write_bytes(path.read_bytes().replace(b'-1.0', b'-2.0', 1))
  assert len(Tail(path).read()) == 319  # the altered line is left out


def without_digest(line):
  return {key: value for key, value in json.loads(line).items() if key != 'sha256'}


# ------------------------------------------------------------------------------------- security


def test_requests_of_other_sites_and_for_other_hosts_are_refused(client):
  assert client.get('/api/runs').status_code == 200
  for headers in (
    {'host': 'evil.example'},
    {'host': 'evil.example:8017'},
    {'host': '127.0.0.1.evil.example'},
    {'host': 'localhost@evil.example'},
    {'origin': 'http://evil.example'},
    {'origin': 'null'},
    {'origin': 'http://127.0.0.1:9999'},
    {'sec-fetch-site': 'cross-site'},
    {'sec-fetch-site': 'same-site'},
  ):
    response = client.get('/api/runs', headers=headers)
    assert response.status_code == 403, headers
    assert 'rows' not in response.text
  assert client.get('/api/runs', headers={'host': 'localhost:1234'}).status_code == 200  # an ssh tunnel
  assert client.get('/api/runs', headers={'origin': ORIGIN}).status_code == 200
  assert client.delete('/api/runs').status_code == 403
  assert client.post('/api/runs', content=b'run=base').status_code == 403


def test_every_answer_forbids_foreign_scripts(client):
  for path in ('/', '/static/main.js', '/api/runs', '/nowhere'):
    response = client.get(path)
    policy = response.headers['content-security-policy']
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert response.headers['x-content-type-options'] == 'nosniff'
  page = client.get('/').text
  assert page.count('<script') == 1
  assert 'src="/static/main.js"' in page
  assert 'http' not in page.replace('http-equiv', '')  # nothing of other servers
  for name, (content, _) in app.static_files().items():
    assert b'innerHTML' not in content, name
    assert b'https://' not in content, name


def test_the_address_answers_as_soon_as_it_is_said():
  with app.bind(0) as listener:
    socket.create_connection(listener.getsockname(), timeout=5).close()
    assert listener.getsockname()[0] == '127.0.0.1'
    with pytest.raises(ValueError, match='cannot be used: .*\nfix: give another'):
      app.bind(listener.getsockname()[1])


def test_sizes_of_requests_are_limited():
  headers = {'host': '127.0.0.1', 'content-type': 'application/json'}
  assert not security.denial_reason('POST', '/api/x', headers | {'content-length': '100'})
  assert security.denial_reason('POST', '/api/x', headers | {'content-length': str(security.MAX_BODY + 1)})
  assert security.denial_reason('POST', '/api/x', headers | {'content-length': '-1'})
  assert security.denial_reason('POST', '/api/x', headers | {'content-type': 'text/plain'})


def test_a_folder_without_runs_and_one_that_does_not_exist(tmp_path):
  (tmp_path / 'empty').mkdir()
  client = testclient.TestClient(app.build_app(tmp_path / 'empty'), base_url=ORIGIN)
  assert get(client, '/api/runs')['rows'] == []
  assert get(client, '/api/tree') == {'nodes': [], 'links': []}
  with pytest.raises(FileNotFoundError, match='fix: give the folder'):
    app.build_app(tmp_path / 'missing')
