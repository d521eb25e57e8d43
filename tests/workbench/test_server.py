"""The server over HTTP: a real web server, the openai client, and attacks."""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import socket
import threading
import time
import wave
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('starlette', reason='starlette is not installed: pip install .[serve]')
pytest.importorskip('uvicorn', reason='uvicorn is not installed: pip install .[serve]')
pytest.importorskip('python_multipart', reason='python-multipart is not installed: pip install .[serve]')

from gpt_jax import data
from gpt_jax.data import media_io
from gpt_jax.evaluation import trained
from gpt_jax.model import adapters
from gpt_jax.sampling import prompts
from gpt_jax.sampling.prompt_batch import Prompt
from gpt_jax.tokenizers import TokenizerConfig, Tokenizers, text
from gpt_jax.workbench.serving import app, decode_batch, fields, forms, guard, rows, server
from gpt_jax.workbench.serving import engine as engines
from gpt_jax.workbench.serving.jobs import Failure
from gpt_jax.workbench.serving.metrics import Metrics
from tests import command_line, models, tiny_runs
from tests.model.test_adapter_bank import random_tree

CONTEXT = 96


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of random weights that takes texts, conversations, images and sounds."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    media = trained.load(tiny_runs.media_finished(tmp_path_factory))
    toks = Tokenizers.build(
      text.build(TokenizerConfig('bytes')), media.tokenizers.image, media.tokenizers.audio
    )
    sources = {
      'text': data.Source(kind='synthetic', template='{text}'),
      'chat': data.Source(kind='jsonl', path='none.jsonl', template='{messages:chat}'),
    }
    cfg = dataclasses.replace(media.cfg.data, mixture={**media.cfg.data.mixture, **sources})
    sampling = dataclasses.replace(media.cfg.sample, max_new_tokens=24)
    vocabulary = toks.vocabulary.size
    model = models.fill(
      models.tiny(layers=1, context=CONTEXT, vocab=vocabulary, positions='mrope', head_dim=8)
    )
    yield media._replace(
      cfg=dataclasses.replace(media.cfg, data=cfg, sample=sampling), model=model, tokenizers=toks
    )


@contextlib.contextmanager
def serving(run, token='', adapters=(), **fields):
  """Serve a run on a free port -> (port, the engine, the run as it is served)."""
  cfg = server.ServeConfig(port=0, **fields)
  app, engine, endpoints = server.build(run, cfg, token, adapters)
  with server.listen(cfg) as sock:
    web = server.web_server(app, 100)
    thread = threading.Thread(target=web.run, kwargs={'sockets': [sock]})
    engine.start()
    thread.start()
    try:
      yield sock.getsockname()[1], engine, endpoints.forms_of(None).run
    finally:
      web.should_exit = True
      thread.join()
      engine.stop()


@pytest.fixture(scope='module')
def served(run):
  with serving(run, slots=4, queue=8) as started:
    yield started


@pytest.fixture
def client(served):
  openai = pytest.importorskip('openai')
  with openai.OpenAI(base_url=f'http://127.0.0.1:{served[0]}/v1', api_key='none', max_retries=0) as client:
    yield client


def post(port, path, body, headers=None, method='POST'):
  """Send one request -> (status, JSON or bytes)."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
  content = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
  connection.request(method, path, content, {'Content-Type': 'application/json'} | (headers or {}))
  answer = connection.getresponse()
  content = answer.read()
  connection.close()
  is_json = answer.headers.get('content-type', '').startswith('application/json')
  return answer.status, json.loads(content) if is_json else content


def expected(run, prompt, n=1, **sampling):
  """The texts that `launch.py sample` prints."""
  texts = run.generate([prompt], num_samples=n, **sampling)
  return texts[0] if n > 1 else texts


def model_name(client):
  [model] = client.models.list()
  return model.id


# ------------------------------------------------------------------------------------------- texts


def test_texts_equal_those_of_sample(served, client):
  name, run = model_name(client), served[2]
  answer = client.completions.create(model=name, prompt='one', seed=3, n=2, temperature=0.8)
  texts = expected(run, 'one', 2, seed=3, temperature=0.8)
  assert [choice.text for choice in answer.choices] == texts
  assert [choice.index for choice in answer.choices] == [0, 1]
  assert answer.usage.prompt_tokens == 4 and 2 <= answer.usage.completion_tokens <= 48
  stream = client.completions.create(
    model=name, prompt='one', seed=3, temperature=0.8, stream=True, stream_options={'include_usage': True}
  )
  *pieces, last = stream
  assert len(pieces) > 2 and last.choices == [] and last.usage.prompt_tokens == 4
  [alone] = expected(run, 'one', seed=3, temperature=0.8)
  assert ''.join(piece.choices[0].text for piece in pieces) == alone
  finish = 'length' if last.usage.completion_tokens == 24 else 'stop'
  assert pieces[-1].choices[0].finish_reason == finish


def test_a_stop_string_ends_a_text_before_it(served, client):
  name, run = model_name(client), served[2]
  [whole] = expected(run, 'two', seed=1)
  stop = whole[5:7]
  cut = whole[: whole.find(stop)]
  for stream in (False, True):
    answer = client.completions.create(
      model=name, prompt='two', seed=1, stop=['not there', stop], stream=stream, logprobs=0
    )
    pieces = [piece.choices[0] for piece in answer] if stream else answer.choices
    assert ''.join(piece.text for piece in pieces) == cut and pieces[-1].finish_reason == 'stop'
    tokens = [token for piece in pieces for token in piece.logprobs.tokens]
    assert ''.join(tokens).startswith(cut) and len(''.join(tokens)) < len(whole)


def test_log_probabilities_are_those_of_the_model(served, client):
  name, run = model_name(client), served[2]
  answer = client.completions.create(model=name, prompt='abc', seed=5, logprobs=3, max_tokens=6).choices[0]
  [[(string, log_probs)]] = run.complete(
    [prompts.build_prompt(run, 'abc')], dataclasses.replace(run.cfg.sample, seed=5, max_new_tokens=6)
  )
  assert answer.text == string
  np.testing.assert_allclose(answer.logprobs.token_logprobs, log_probs, atol=1e-4)
  for value, top in zip(log_probs, answer.logprobs.top_logprobs, strict=True):
    assert 1 <= len(top) <= 4 and max(top.values()) >= value - 1e-4


def test_chat_equals_the_run_s_own(served, client):
  name, run = model_name(client), served[2]
  messages = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
  reply = run.chat(messages, seed=7, temperature=0.9)
  options = dict(model=name, messages=messages, seed=7, temperature=0.9)
  answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
  assert answer.choices[0].message.content == reply
  content = answer.choices[0].logprobs.content
  assert ''.join(token.token for token in content) == reply
  assert all(len(token.top_logprobs) == 2 for token in content)
  pieces = [piece.choices[0].delta for piece in client.chat.completions.create(**options, stream=True)]
  assert pieces[0].role == 'assistant' and ''.join(piece.content for piece in pieces) == reply


def test_ids_as_a_prompt_have_the_prefix_mask_of_training(run):
  for prefix, mask in ((False, 'causal'), (True, 'condition')):
    cfg = dataclasses.replace(run.cfg, data=dataclasses.replace(run.cfg.data, prefix=prefix))
    assert forms.Forms(run._replace(cfg=cfg), 'x').as_prompt([1, 2]) == Prompt([1, 2], mask=mask)


def test_many_clients_at_once_get_what_they_get_alone(served, client):
  name, run = model_name(client), served[2]
  answers = {}

  def ask(n):
    with contextlib.closing(
      client.completions.create(
        model=name, prompt='word ' * (1 + n % 3), seed=n, stream=True, max_tokens=5 + 3 * n
      )
    ) as stream:
      answers[n] = ''.join(piece.choices[0].text for piece in stream)

  threads = [threading.Thread(target=ask, args=[n]) for n in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for n, answer in sorted(answers.items()):
    assert [answer] == expected(run, 'word ' * (1 + n % 3), seed=n, max_new_tokens=5 + 3 * n)
  assert len(answers) == 8


# ------------------------------------------------------------------------------- sounds and images


def test_images_and_sounds_equal_those_of_sample(served, client):
  name, run = model_name(client), served[2]
  options = {'seed': 4, 'source': 'draw'}
  answer = client.images.generate(model=name, prompt='seven', n=2, size='16x16', extra_body=options)
  images = run.generate([{'text': 'seven', 'source': 'draw'}], 'image', num_samples=2, seed=4)[0]
  for row, image in zip(answer.data, images, strict=True):
    pixels, _ = media_io.read_image(base64.b64decode(row.b64_json), (16, 16, image.shape[2]))
    np.testing.assert_array_equal(pixels, image.repeat(2, 0).repeat(2, 1))
  speech = client.audio.speech.create(
    model=name, input='one', voice='dial', response_format='wav', extra_body={'seed': 2}
  ).read()
  [sound] = run.generate([{'text': 'one', 'source': 'dial'}], 'audio', seed=2)
  assert speech == media_io.to_wav(sound, run.tokenizers.audio.sample_rate)
  heard = client.audio.transcriptions.create(
    model=name, file=('a.wav', speech), extra_body={'source': 'listen'}, response_format='text'
  )
  [words] = run.generate([{'sounds': [speech], 'source': 'listen'}], temperature=0.0)
  assert heard.removesuffix('\n') == words


def test_a_run_says_what_it_can_do(served, client, run):
  port, _, _ = served
  [model] = post(port, '/v1/models', None, method='GET')[1]['data']
  assert [path.removeprefix('/v1/') for path in model['endpoints']] == [
    'models',
    'completions',
    'chat/completions',
    'audio/transcriptions',
    'audio/speech',
    'images/generations',
  ]
  assert model['context'] == CONTEXT and model['sources']['draw'] == '{name} -> {image:image}'
  plain = dataclasses.replace(
    run.cfg.data, mixture={'text': run.cfg.data.mixture['text']}, condition_dropout=0.0
  )
  own = run._replace(cfg=dataclasses.replace(run.cfg, data=plain), model=models.fill(run.model.cfg))
  with serving(own) as (port, _, _):
    [model] = post(port, '/v1/models', None, method='GET')[1]['data']
    assert model['endpoints'] == ['/v1/models', '/v1/completions']
    assert_error(post(port, '/v1/audio/speech', {'input': 'a'}), 404, 'was not trained for')


def test_a_model_that_cannot_decode_is_not_served(run):
  class Failing:
    slots, batches = 8, {'text': SimpleNamespace(end_ids=frozenset())}
    cancel = staticmethod(lambda jobs: None)

    def submit(self, jobs):
      jobs[0].emit(Failure(MemoryError('no room')))

  with pytest.raises(MemoryError, match='no room'):
    server.warm_up(Failing(), forms.Forms(run, 'x'))


# ---------------------------------------------------------------------------------------- adapters


@pytest.fixture(scope='module')
def adapted(run):
  """(port, {name: the run with this adapter merged}) of a server of a run and two adapters."""
  cfg, trees, runs = run.model.cfg, {}, {}
  for seed, (name, rank) in enumerate((('french', 2), ('polite', 3))):
    trees[name] = random_tree(adapters.AdapterConfig(rank=rank), cfg, seed)
    runs[name] = run._replace(model=adapters.merge(models.fill(cfg), trees[name]))
  changed = dataclasses.replace(run.cfg, model=dataclasses.replace(run.cfg.model, context=CONTEXT))
  own = {name: run._replace(cfg=changed, model=tree, workdir=name) for name, tree in trees.items()}
  with serving(run._replace(model=models.fill(cfg)), slots=4, adapters=own) as (port, _, base_run):
    [name] = [m['id'] for m in post(port, '/v1/models', None, method='GET')[1]['data'] if 'parent' not in m]
    yield port, {name: base_run} | runs


def test_adapters_share_a_batch_and_each_text_is_that_of_its_model_alone(adapted):
  port, runs = adapted
  [base, *others] = post(port, '/v1/models', None, method='GET')[1]['data']
  assert [row['id'] for row in others] == ['french', 'polite'] and {row['parent'] for row in others} == {
    base['id']
  }
  names, prompt, answers = [*runs, *runs], 'a text that is longer than thirty-two tokens', {}

  def ask(n):
    body = {'model': names[n], 'prompt': prompt, 'seed': n, 'max_tokens': 20, 'logprobs': 0}
    answers[n] = post(port, COMPLETION, body)[1]

  threads = [threading.Thread(target=ask, args=[n]) for n in range(len(names))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  texts = set()
  for n, answer in sorted(answers.items()):
    run = runs[names[n]]
    cfg = dataclasses.replace(run.cfg.sample, seed=n, max_new_tokens=20)
    [[(text, log_probs)]] = run.complete([prompts.build_prompt(run, prompt)], cfg)
    assert answer['model'] == names[n] and answer['choices'][0]['text'] == text
    own = answer['choices'][0]['logprobs']['token_logprobs']  # without the end of the text
    np.testing.assert_allclose(own, log_probs[: len(own)], atol=1e-3)
    texts.add(text)
  assert len(answers) == 6 and len(texts) == 6


def test_media_of_an_adapter_and_a_model_that_is_not_served(adapted):
  port, runs = adapted
  body = {'model': 'polite', 'prompt': 'seven', 'seed': 4, 'source': 'draw'}
  answer = post(port, '/v1/images/generations', body)[1]
  [image] = runs['polite'].generate([{'text': 'seven', 'source': 'draw'}], 'image', seed=4)
  pixels, _ = media_io.read_image(base64.b64decode(answer['data'][0]['b64_json']), image.shape)
  np.testing.assert_array_equal(pixels, image)
  assert_error(post(port, COMPLETION, {'model': 'german', 'prompt': 'a'}), 404, 'german')


# ------------------------------------------------------------------------------------------ errors


def assert_error(outcome, status, *parts):
  """An error in OpenAI's form whose message has two lines."""
  code, body = outcome
  assert code == status, outcome
  tiny_runs.assert_two_lines(body['error']['message'], *parts)
  assert set(body['error']) == {'message', 'type', 'param', 'code'}
  assert '/tmp' not in body['error']['message'] and 'Traceback' not in body['error']['message']


COMPLETION = '/v1/completions'
CHAT = '/v1/chat/completions'
USER = {'role': 'user', 'content': 'Hi'}
WRONG = {
  'a path as a picture': (
    CHAT,
    {'messages': [{'role': 'user', 'content': [{'image': '/etc/passwd'}]}]},
    'is not a part',
  ),
  'an address': (
    CHAT,
    {
      'messages': [
        {'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': 'http://10.0.0.1/x.png'}}]}
      ]
    },
    'is an address',
  ),
  'a picture that is none': (
    CHAT,
    {
      'messages': [
        {
          'role': 'user',
          'content': [{'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,AAAA'}}],
        }
      ]
    },
    'is not a picture',
  ),
  'tools': (CHAT, {'messages': [USER], 'tools': [{'type': 'function'}]}, 'tools', 'is not supported'),
  'an unknown field': (COMPLETION, {'prompt': 'a', 'temprature': 1}, 'temprature is not a field'),
  'a text as a number': (COMPLETION, {'prompt': 'a', 'temperature': '1'}, 'is not a number'),
  'a huge number': (COMPLETION, b'{"prompt": "a", "temperature": 1e999}', 'is out of range'),
  'a number that is none': (COMPLETION, b'{"prompt": "a", "temperature": NaN}', 'NaN is not a number'),
  'a deep body': (COMPLETION, b'[' * 100_000, 'the body is not JSON'),
  'many digits': (COMPLETION, b'{"prompt": ' + b'1' * 10_000 + b'}', 'the body is not JSON'),
  'a list': (COMPLETION, [1], 'the body is list'),
  'not UTF-8': (COMPLETION, b'{"prompt": "\xff"}', 'the body is not JSON'),
  'a lone surrogate': (COMPLETION, b'{"prompt": "\\ud800"}', 'lone surrogate'),
  'a wrong id': (COMPLETION, {'prompt': [10**6]}, 'token id 1000000 is out of range'),
  'a long text': (COMPLETION, {'prompt': 'a' * 200}, 'the prompt has 201 tokens'),
  'a far too long text': (COMPLETION, {'prompt': 'a' * 10_000}, 'has 10000 characters'),
  'too many tokens': (COMPLETION, {'prompt': 'a', 'max_tokens': 96}, '96 of the answer are more than 96'),
  'too many texts': (COMPLETION, {'prompt': ['a'] * 9, 'n': 2}, 'is too many'),
  'a negative number': (COMPLETION, {'prompt': 'a', 'max_tokens': -1}, 'max_tokens=-1 is out of range'),
  'an empty stop string': (COMPLETION, {'prompt': 'a', 'stop': ['']}, 'stop'),
  'another model': (COMPLETION, {'prompt': 'a', 'model': '../../etc'}, 'is not served'),
  'mp3': ('/v1/audio/speech', {'input': 'one', 'response_format': 'mp3'}, 'is not supported'),
  'a voice': ('/v1/audio/speech', {'input': 'one', 'voice': 'alloy'}, 'is not known'),
  'an odd size': ('/v1/images/generations', {'prompt': 'seven', 'size': '100x100'}, 'is not a multiple'),
}


@pytest.mark.parametrize('path, body, parts', [(p, b, parts) for p, b, *parts in WRONG.values()], ids=WRONG)
def test_wrong_requests_are_told_the_cause_and_the_fix(served, path, body, parts):
  assert_error(post(served[0], path, body), 404 if parts == ['is not served'] else 400, *parts)


def test_hostile_uploads_are_refused(served):
  bomb = io.BytesIO()
  with wave.open(bomb, 'wb') as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(8000)
    file.writeframes(bytes(16000 * 60))
  for content, words in ((b'RIFF', 'is not a sound'), (bomb.getvalue(), 'more than'), (b'', 'is empty')):
    body = form(('file', content), ('source', b'listen'))
    assert_error(post(served[0], '/v1/audio/transcriptions', body, FORM), 400, words)
  assert_error(post(served[0], '/v1/audio/transcriptions', b'--x', FORM), 400, '')
  assert_error(post(served[0], '/v1/audio/transcriptions', form(('a', b'b')), FORM), 400, 'file is missing')
  assert_error(post(served[0], '/v1/audio/transcriptions', b'', {'Content-Type': 'text/plain'}), 415, 'form')


FORM = {'Content-Type': 'multipart/form-data; boundary=x'}


def form(*parts):
  """A body of multipart/form-data; a part named file is a file."""
  lines = []
  for name, content in parts:
    file = '; filename="../../a.wav"' if name == 'file' else ''
    lines += [b'--x', f'Content-Disposition: form-data; name="{name}"{file}'.encode(), b'', content]
  return b'\r\n'.join([*lines, b'--x--', b''])


# ----------------------------------------------------------------------------------------- attacks


def test_requests_of_other_sites_and_wrong_paths_are_refused(served):
  port, body = served[0], {'prompt': 'a', 'max_tokens': 1}
  assert post(port, COMPLETION, body, {'Host': 'localhost:1', 'Origin': 'http://localhost:1'})[0] == 200
  for headers, words in (
    ({'Host': 'evil.example'}, 'evil.example'),
    ({'Origin': 'http://evil.example'}, 'another site'),
    ({'Origin': 'null'}, 'another site'),
    ({'Origin': 'http://['}, 'another site'),
    ({'Sec-Fetch-Site': 'cross-site'}, 'another site'),
  ):
    assert_error(post(port, COMPLETION, body, headers), 403, words)
  assert_error(post(port, COMPLETION, body, {'Content-Type': 'text/plain'}), 415, 'text/plain')
  for path in ('/v1/models/..%2f..%2fetc%2fpasswd', '/v1/models/<script>'):
    assert post(port, path, None, method='GET')[0] == 404
  assert_error(post(port, '/../../etc/passwd', None, method='GET'), 404, 'Not Found')
  wrong_method = post(port, COMPLETION, None, method='GET')
  assert_error(wrong_method, 405, 'Method Not Allowed')
  assert wrong_method[1]['error']['message'].endswith('fix: send a POST')


def raw(port, content, seconds=5.0):
  """Send bytes -> what comes back before the connection ends, or in time."""
  with socket.create_connection(('127.0.0.1', port), timeout=seconds) as connection:
    connection.sendall(content)
    received = b''
    with contextlib.suppress(TimeoutError, ConnectionError):
      while piece := connection.recv(1 << 16):
        received += piece
    return received


def test_bodies_that_are_too_large_or_malformed_are_refused(run):
  head = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
  own = run._replace(model=models.fill(run.model.cfg))
  with serving(own, max_body=1) as (port, _, _):
    declared = raw(port, head + b'Content-Length: 9999999999999\r\n\r\n{}', 1.0)
    assert declared.startswith(b'HTTP/1.1 413')
    chunk = b'10000\r\n' + b' ' * 0x10000 + b'\r\n'
    assert raw(port, head + b'Transfer-Encoding: chunked\r\n\r\n' + chunk * 20, 1.0).startswith(
      b'HTTP/1.1 413'
    )
    for length in (b'-1', b'1e3', b'\xb2'):
      assert raw(port, head + b'Content-Length: ' + length + b'\r\n\r\n{}', 1.0).startswith(b'HTTP/1.1 400')
    assert raw(port, b'\x16\x03\x01' * 100, 1.0).startswith(b'HTTP/1.1 400')
    assert raw(port, b'GET /health HTTP/1.1\r\nX: ' + b'a' * 100_000, 1.0)[:12] in (b'HTTP/1.1 400', b'')
    assert post(port, '/health', None, method='GET') == (200, {'status': 'ok'})


def test_connections_that_say_nothing_are_closed(run, monkeypatch):
  monkeypatch.setattr(server, 'SECONDS', 0.4)
  head = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
  own = run._replace(model=models.fill(run.model.cfg))
  with serving(own) as (port, _, _):
    for content, answer in ((head, b''), (head + b'Content-Length: 9\r\n\r\n{', b'HTTP/1.1 408')):
      start = time.monotonic()
      assert raw(port, content, 20.0)[:12] == answer
      assert time.monotonic() - start < 15


def test_a_body_that_trickles_is_cut(run, monkeypatch):
  monkeypatch.setattr(server, 'SECONDS', 0.6)
  head = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
  own = run._replace(model=models.fill(run.model.cfg))
  with serving(own) as (port, _, _), socket.create_connection(('127.0.0.1', port), timeout=0.1) as connection:
    connection.sendall(head + b'Content-Length: 1000\r\n\r\n')
    answer, start = b'', time.monotonic()
    while not answer and time.monotonic() - start < 15:
      with contextlib.suppress(OSError):
        connection.sendall(b' ')  # never longer than SECONDS without a byte
        answer = connection.recv(100)
    assert answer.startswith(b'HTTP/1.1 408')


def test_a_client_that_does_not_read_is_cut():
  counters, sent = Metrics(), []

  async def endless(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200})
    while True:
      await send({'type': 'http.response.body', 'body': b'x', 'more_body': True})

  async def send(message):
    sent.append(message)
    if len(sent) > 3:  # its buffers are full
      await asyncio.Event().wait()

  scope = {'type': 'http', 'path': '/x', 'headers': [(b'host', b'localhost')]}
  asyncio.run(guard.Guard(endless, counters, seconds=0.1)(scope, None, send))
  assert len(sent) == 4 and counters.counters['aborted_total', ()] == 1


def test_markup_in_a_request_comes_back_as_text(served):
  body = {'prompt': 'a', 'model': '<script>alert(1)</script>'}
  connection = http.client.HTTPConnection('127.0.0.1', served[0], timeout=60)
  with contextlib.closing(connection):
    connection.request('POST', COMPLETION, json.dumps(body), {'Content-Type': 'application/json'})
    answer = connection.getresponse()
    assert b'<script>' in answer.read() and answer.headers['content-type'] == 'application/json'
    assert answer.headers['x-content-type-options'] == 'nosniff'


def test_two_hosts_are_none(served):
  head = b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n'
  assert raw(served[0], head)[9:12] in (b'400', b'403')


def test_clients_that_leave_free_their_rows(served, monkeypatch):
  """Streams that are cut, and requests whose clients do not wait."""
  port, engine, _ = served
  decode = rows.jit_decode

  def slow(*arguments):
    time.sleep(0.05)
    return decode(*arguments)

  monkeypatch.setattr(rows, 'jit_decode', slow)
  aborted = lambda: int(dict(metrics(port)).get('gpt_jax_aborted_total', '0'))
  before = aborted()
  for n in range(12):
    body = json.dumps({'prompt': 'a', 'max_tokens': 90, 'stream': n % 2 == 0}).encode()
    head = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
    with socket.create_connection(('127.0.0.1', port), timeout=20) as connection:
      connection.sendall(head + b'Content-Length: %d\r\n\r\n' % len(body) + body)
      if n % 2 == 0:
        assert connection.recv(10)
  end = time.monotonic() + 20
  while (any(engine.counts()) or aborted() < before + 12) and time.monotonic() < end:
    time.sleep(0.05)
  assert engine.counts() == (0, 0) and aborted() == before + 12, metrics(port)
  assert not engine.batches['text'].jobs
  assert post(port, COMPLETION, {'prompt': 'a', 'max_tokens': 2})[0] == 200


def metrics(port):
  """The lines of /metrics as (name, value)."""
  content = post(port, '/metrics', None, method='GET')[1].decode()
  return [line.rsplit(' ', 1) for line in content.splitlines() if not line.startswith('#')]


def test_counters_count_requests_and_tokens(served):
  port = served[0]
  before = dict(metrics(port))
  post(port, COMPLETION, {'prompt': 'abc', 'max_tokens': 5, 'temperature': 0})
  post(port, '/v1/nothing<script>', {})
  after = dict(metrics(port))
  moved = lambda name: float(after[name]) - float(before.get(name, 0))
  assert moved('gpt_jax_prompt_tokens_total') == 4
  assert 1 <= moved('gpt_jax_generated_tokens_total') <= 5
  assert moved('gpt_jax_requests_total{path="/v1/completions",status="200"}') == 1
  assert moved('gpt_jax_requests_total{path="other",status="404"}') == 1
  assert moved('gpt_jax_first_token_seconds_count') == 1
  assert after['gpt_jax_first_token_seconds_bucket{le="+Inf"}'] == after['gpt_jax_first_token_seconds_count']


def test_a_high_rate_and_a_wrong_token_are_refused(run):
  own = run._replace(model=models.fill(run.model.cfg))
  right = {'Authorization': 'Bearer sixteen letters!'}
  with serving(own, 'sixteen letters!', rate=60) as (port, engine, _):
    for headers in ({}, {'Authorization': 'Bearer sixteen letters'}, {'Authorization': 'sixteen letters!'}):
      assert_error(post(port, '/v1/models', None, headers, 'GET'), 401, 'the token is missing or wrong')
    assert post(port, '/health', None, method='GET')[0] == 200
    codes = [post(port, '/v1/models', None, right | {'Host': 'any.name'}, 'GET')[0] for _ in range(8)]
    assert codes[0] == 200 and 429 in codes
    assert engine.counts() == (0, 0)


def test_a_full_queue_is_refused_and_an_idle_server_takes_any_request(run, monkeypatch):
  decode, is_released = rows.jit_decode, threading.Event()

  def wait(*arguments):
    assert is_released.wait(60)
    return decode(*arguments)

  own = run._replace(model=models.fill(run.model.cfg))
  with serving(own, slots=1, queue=2) as (port, engine, _):
    answer = post(port, COMPLETION, {'prompt': ['a', 'b'], 'n': 4, 'max_tokens': 1})
    assert len(answer[1]['choices']) == 8  # more than slots and queue
    monkeypatch.setattr(rows, 'jit_decode', wait)
    answers = []
    ask = lambda: answers.append(post(port, COMPLETION, {'prompt': 'a', 'max_tokens': 1})[0])
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for n, thread in enumerate(threads):
      thread.start()
      wait_until(lambda n=n: engine.counts() == (1, n))
    assert_error(post(port, COMPLETION, {'prompt': 'a'}), 503, '2 generations wait')
    is_released.set()
    for thread in threads:
      thread.join()
    assert answers == [200] * 3
    wait_until(lambda: engine.counts() == (0, 0))  # counted after the answer was sent


def test_requests_that_arrive_together_start_together(run, monkeypatch):
  monkeypatch.setattr(engines, 'GATHER', 2.0)  # also where the machine is busy
  groups, group = [], decode_batch.DecodeBatch.group
  monkeypatch.setattr(
    decode_batch.DecodeBatch, 'group', lambda self, jobs: groups.append(len(jobs)) or group(self, jobs)
  )
  own = run._replace(model=models.fill(run.model.cfg))
  with serving(own, slots=4) as (port, _, served_run):
    ask = lambda text: post(port, COMPLETION, {'prompt': text, 'max_tokens': 3, 'seed': 1})
    with concurrent.futures.ThreadPoolExecutor() as pool:
      answers = list(pool.map(ask, 'abc'))
    assert max(groups) == 3
    for prompt, (status, answer) in zip('abc', answers, strict=True):
      assert status == 200
      assert [answer['choices'][0]['text']] == expected(served_run, prompt, max_new_tokens=3, seed=1)


def test_a_prompt_that_is_refused_fails_alone(run, monkeypatch):
  """Though it is prefilled with others."""
  monkeypatch.setattr(engines, 'GATHER', 2.0)
  own = run._replace(model=models.fill(run.model.cfg))
  open_image = [*b'ab', run.tokenizers.vocabulary.special('boi')]
  with serving(own, slots=4) as (port, engine, served_run):
    ask = lambda prompt: post(port, COMPLETION, {'prompt': prompt, 'max_tokens': 3, 'seed': 1})
    with concurrent.futures.ThreadPoolExecutor() as pool:
      first, refused, last = pool.map(ask, ('a', open_image, 'c'))
    assert_error(refused, 400, 'too few for what is to be made')
    for prompt, (status, answer) in (('a', first), ('c', last)):
      assert status == 200
      assert [answer['choices'][0]['text']] == expected(served_run, prompt, max_new_tokens=3, seed=1)
    wait_until(lambda: engine.counts() == (0, 0))


@pytest.mark.parametrize('slots, queue, most', [(3, 8, 3), (8, 2, 2)])
def test_an_idle_engine_waits_for_no_more_than_it_starts_or_queues(run, monkeypatch, slots, queue, most):
  monkeypatch.setattr(engines, 'GATHER', 100.0)
  engine = engines.Engine([run], Metrics(), slots, queue)
  engine.waiting.extend(range(most - 1))
  timer = threading.Timer(0.2, lambda: engine.waiting.append(None) or engine.cancel([]))
  timer.start()
  start = time.monotonic()
  assert engine._has_work() and len(engine.waiting) == most
  assert time.monotonic() - start < 50  # the last one that there is room for ends the wait


def test_what_groups_need_is_compiled_before_the_first_request(run):
  own = run._replace(model=models.fill(run.model.cfg))
  with serving(own, slots=8) as (port, engine, served_run):
    server.warm_up(engine, forms.Forms(served_run, 'run', 0))
    wait_until(lambda: engine.counts() == (0, 0))
    compiled = [f._cache_size() for f in (rows.jit_insert, rows.jit_arrange, rows.jit_decode)]
    answer = post(port, COMPLETION, {'prompt': ['a', 'b', 'c'], 'max_tokens': 24})
    assert answer[0] == 200
    assert compiled == [f._cache_size() for f in (rows.jit_insert, rows.jit_arrange, rows.jit_decode)]


def wait_until(condition, seconds=20):
  """Wait for a condition, which holds in time."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_large_bodies_are_decoded_off_the_event_loop(served, monkeypatch):
  decoders = []

  class Recorded(fields.Fields):
    @classmethod
    def of_json(cls, body):
      decoders.append(threading.current_thread().name)
      return super().of_json(body)

  monkeypatch.setattr(app, 'Fields', Recorded)
  for size in (10, app.LARGE):
    post(served[0], COMPLETION, {'prompt': 'a', 'user': 'x' * size, 'max_tokens': 1})
  assert decoders[0] != decoders[1] and decoders[1].startswith('asyncio')


def test_media_of_a_conversation_are_counted_before_they_are_decoded(served, monkeypatch):
  monkeypatch.setattr(fields, 'decode_base64', lambda *_: pytest.fail('decoded'))
  picture = {'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,AAAA'}}
  messages = [{'role': 'user', 'content': [picture] * 9}, {'role': 'user', 'content': [picture] * 8}]
  assert_error(post(served[0], CHAT, {'messages': messages}), 400, 'messages have 17 pictures')


# ---------------------------------------------------------------------------------- the engine's end


def test_a_failing_decode_is_an_error_of_its_requests_alone(served, monkeypatch, capfd):
  port = served[0]

  def broken(*_):
    raise RuntimeError('a secret path')

  with monkeypatch.context() as patch:
    patch.setattr(decode_batch.rows, 'jit_decode', broken)
    status, body = post(port, COMPLETION, {'prompt': 'a'})
    assert status == 500 and 'secret' not in json.dumps(body)
    content = post(port, COMPLETION, {'prompt': 'a', 'stream': True})[1]
    assert b'"server_error"' in content and b'secret' not in content
  assert 'a secret path' in capfd.readouterr().err
  assert post(port, COMPLETION, {'prompt': 'a', 'max_tokens': 1})[0] == 200


def test_an_engine_that_ends_lets_nobody_wait(run):
  own = run._replace(model=models.fill(run.model.cfg))
  with serving(own) as (port, engine, _):
    engine.stop()
    assert_error(post(port, COMPLETION, {'prompt': 'a'}), 503, 'the server stops')
    assert post(port, '/health', None, method='GET')[0] == 503


def test_the_command_line_refuses_what_it_cannot_serve(tmp_path_factory, capsys, monkeypatch):
  call = command_line.in_process(capsys, monkeypatch)
  workdir = tiny_runs.finished(tmp_path_factory)
  fix = command_line.assert_user_error(
    call('serve', f'--workdir={workdir}', '--host=0.0.0.0'), '--host=0.0.0.0'
  )
  assert 'GPT_JAX_TOKEN' in fix
  with tiny_runs.compiled_programs(tmp_path_factory):
    outcome = call('serve', f'--workdir={workdir}', '--port=0', '--beams=2')
  command_line.assert_user_error(outcome, 'sample.beams=2')
  command_line.assert_user_error(call('serve', f'--workdir={workdir}', '--slots=0'), '--slots=0')
