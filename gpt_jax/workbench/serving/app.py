"""The endpoints: /v1/completions, chat, audio and images, models; /health and /metrics."""

import asyncio
import base64
import contextlib
import sys
import time
import traceback

from gpt_jax.data import media_io
from gpt_jax.workbench.serving import fields as request_fields
from gpt_jax.workbench.serving import replies, streams
from gpt_jax.workbench.serving.errors import RequestError, error_body, error_response, json_response
from gpt_jax.workbench.serving.fields import Fields, refused

MOST_CHOICES = 16  # texts of one request
MOST_IMAGES = 8
MOST_SIDE = 2048  # pixels of an enlarged image
PREPARED = 2  # requests whose prompts are encoded at once: a picture may take 200 MB while it is decoded
SOUNDS = {'wav': 'audio/wav', 'flac': 'audio/flac', 'pcm': 'audio/pcm'}


class Server:
  """The endpoints of one run. `app` is the ASGI application; the engine must be started."""

  def __init__(self, name, forms, engine, metrics):
    self.name, self.forms, self.engine, self.metrics = name, forms, engine, metrics
    self.created, self.preparing = int(time.time()), asyncio.Semaphore(PREPARED)

  def paths(self):
    """Return {path: (method, handler)} of what this run can do."""
    can = self.forms.endpoints
    table = {
      '/health': ('GET', self.health),
      '/metrics': ('GET', self.show_metrics),
      '/v1/models': ('GET', self.models),
      '/v1/models/{name}': ('GET', self.model),
      '/v1/completions': ('POST', self.completions),
      '/v1/chat/completions': ('POST', self.chat if 'chat' in self.engine.lanes else None),
      '/v1/audio/transcriptions': ('POST', self.transcribe if can['audio/transcriptions'] else None),
      '/v1/audio/speech': ('POST', self.speak if can['audio/speech'] else None),
      '/v1/images/generations': ('POST', self.draw if can['images/generations'] else None),
    }
    return {path: (method, handler or self.cannot) for path, (method, handler) in table.items()}

  def app(self):
    """Return the Starlette application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    async def on_http_error(request, error):
      fix = 'fix: use one of ' + ', '.join(self.paths())
      return error_response(
        RequestError(f'{error.detail}: {request.url.path[:100]}\n{fix}', error.status_code)
      )

    routes = [Route(p, self.answering(h), methods=[method]) for p, (method, h) in self.paths().items()]
    return Starlette(routes=routes, exception_handlers={HTTPException: on_http_error})

  def answering(self, handler):
    """Return the handler with its exceptions as answers."""
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response

    async def answer(request):
      try:
        return await handler(request)
      except (streams.Gone, ClientDisconnect):
        self.metrics.count('aborted')
        return Response(status_code=499)
      except HTTPException as error:  # a form that cannot be parsed
        cause = ' '.join(str(error.detail)[:200].split())
        return error_response(RequestError(f'{cause}\nfix: send multipart/form-data', error.status_code))
      except Exception as error:
        if '\nfix:' not in str(error):
          traceback.print_exc(file=sys.stderr)
        return error_response(error)

    return answer

  # --------------------------------------------------------------------------------- small endpoints

  async def health(self, request):
    """Answer 200 while the engine runs."""
    is_alive = self.engine.thread.is_alive()
    return json_response({'status': 'ok' if is_alive else 'the engine has ended'}, 200 if is_alive else 503)

  async def show_metrics(self, request):
    """Answer in the text format of Prometheus."""
    from starlette.responses import Response

    running, waiting = self.engine.counts()
    text = self.metrics.render(running=running, waiting=waiting)
    return Response(text, media_type='text/plain; version=0.0.4')

  def describe(self):
    """Return the model object: OpenAI's fields, and what the run can do."""
    can = [path for path, (method, handler) in self.paths().items() if handler != self.cannot]
    head = {'id': self.name, 'object': 'model', 'created': self.created, 'owned_by': 'gpt_jax'}
    return (
      head
      | {'endpoints': [path for path in can if path.startswith('/v1/') and '{' not in path]}
      | self.forms.describe()
    )

  async def models(self, request):
    """List the one model."""
    return json_response({'object': 'list', 'data': [self.describe()]})

  async def model(self, request):
    """Describe the model."""
    self.check_model(request.path_params['name'])
    return json_response(self.describe())

  async def cannot(self, request):
    """Refuse what the run was not trained for."""
    raise RequestError(
      f'{self.name} was not trained for {request.url.path}\nfix: see /v1/models for what it can do',
      status=404,
    )

  def check_model(self, name):
    """Raise RequestError for another model."""
    if name not in (None, self.name):
      raise RequestError(
        f'model {request_fields.shown(name)} is not served\nfix: use {self.name}',
        status=404,
        param='model',
        code='model_not_found',
      )

  # ------------------------------------------------------------------------------------------ texts

  async def completions(self, request):
    """POST /v1/completions."""
    fields = await self.json_fields(request)
    values = take_prompts(fields)
    count = fields.take('logprobs', int, None, 0, 20)
    options = take_text_options(fields, len(values))
    options |= dict(alternatives=count or 0, wants_tokens=count is not None)
    source, most = fields.take('source', str, ''), fields.take('max_tokens', int, None, 1)
    overrides, stop = request_fields.take_sampling(fields), request_fields.take_stop(fields)
    fields.refuse_rest('prompt', 'max_tokens', 'logprobs', *KNOWN)

    def prepare():
      prompts = [self.forms.as_prompt(value, source) for value in values]
      return self.forms.text_jobs(
        prompts, overrides, options['n'], most, self.engine.lanes['text'], stop=stop, **job_options(options)
      )

    return await self.answer_texts(request, replies.Completion, await self.prepared(prepare), options)

  async def chat(self, request):
    """POST /v1/chat/completions."""
    from gpt_jax.sampling.prompts import chat_ends

    fields = await self.json_fields(request)
    messages = request_fields.read_messages(fields.require('messages', list))
    wants = fields.take('logprobs', bool, False)
    count = fields.take('top_logprobs', int, 0, 0, 20)
    if count and not wants:
      raise refused('top_logprobs', count, 'has no effect without logprobs', 'set logprobs to true')
    options = take_text_options(fields, 1) | dict(alternatives=count, wants_tokens=wants)
    most = [fields.take(name, int, None, 1) for name in ('max_completion_tokens', 'max_tokens')]
    most = next((value for value in most if value), None)
    overrides, stop = request_fields.take_sampling(fields), request_fields.take_stop(fields)
    fields.refuse_rest('messages', 'max_tokens', 'top_logprobs', *KNOWN)
    ends, own_stop = chat_ends(self.forms.run)

    def prepare():
      jobs = dict(kind='chat', ends=ends, stop=(*own_stop, *stop), **job_options(options))
      prompt = self.forms.chat_prompt(messages)
      return self.forms.text_jobs([prompt], overrides, options['n'], most, self.engine.lanes['chat'], **jobs)

    return await self.answer_texts(request, replies.Chat, await self.prepared(prepare), options)

  async def answer_texts(self, request, form, jobs, options):
    """Run jobs and answer with their texts, whole or as events."""
    start = time.monotonic()
    reply, generation = replies.Reply(form, self.name), streams.Generation(self.engine, jobs)
    if options['stream']:
      chunks = self.chunks(reply, generation, options, start)
      return streams.EventStream(chunks, lambda: self.close(generation))
    try:
      pieces = await streams.unless_gone(request.receive, self.collect(generation, start))
    finally:
      generation.close()
    choices = []
    for row in pieces:
      tokens = [token for piece in row for token in piece.tokens] if options['wants_tokens'] else None
      choices.append((''.join(piece.text for piece in row), tokens, row[-1].finish))
    return json_response(reply.whole(choices, count_usage([row[-1] for row in pieces], options['n'])))

  async def collect(self, generation, start):
    """Return all events of each job, in the order of the jobs."""
    events = [[] for _ in generation.jobs]
    while (item := await generation.next()) is not None:
      if not any(events):
        self.metrics.observe('first_token_seconds', time.monotonic() - start)
      events[item[0]].append(item[1])
    return events

  async def chunks(self, reply, generation, options, start):
    """Yield the events of a stream; an error is its last one."""
    ends, begun = [None] * len(generation.jobs), set()
    try:
      while (item := await generation.next()) is not None:
        index, piece = item
        if not begun:
          self.metrics.observe('first_token_seconds', time.monotonic() - start)
        yield replies.event(reply.chunk(index, piece, options['wants_tokens'], index not in begun))
        begun.add(index)
        ends[index] = piece
    except Exception as error:
      generation.close()
      generation.open = 0
      yield replies.event(error_body(error)[1])
      return
    if options['include_usage']:
      yield replies.event(reply.last(count_usage(ends, options['n'])))
    yield replies.DONE

  def close(self, generation):
    """Free the rows of a stream that its client has left."""
    if generation.open:
      self.metrics.count('aborted')
    generation.close()

  # ------------------------------------------------------------------------------- sounds and images

  async def transcribe(self, request):
    """POST /v1/audio/transcriptions."""
    from starlette.datastructures import UploadFile

    if not request.headers.get('content-type', '').startswith('multipart/form-data'):
      raise RequestError('the body is not a form\nfix: send multipart/form-data with a file', status=415)
    async with request.form(max_files=1, max_fields=16) as form:
      upload = form.get('file')
      if not isinstance(upload, UploadFile):
        raise RequestError('file is missing\nfix: send a sound as the form field file', param='file')
      content = await upload.read()
      fields = Fields({name: value for name, value in form.items() if name != 'file'})
    self.check_model(fields.take('model', str))
    form = fields.take('response_format', str, 'json')
    if form not in ('json', 'text'):
      raise refused('response_format', form, 'is not supported', 'use json or text')
    if (temperature := fields.take('temperature', str)) is not None:
      fields.values['temperature'] = parse_number('temperature', temperature)
    text, source = fields.take('prompt', str, ''), fields.take('source', str, '')
    overrides = {'temperature': 0.0} | request_fields.take_sampling(fields)
    fields.refuse_rest('file', 'prompt', 'temperature', 'response_format')

    def prepare():
      prompt = self.forms.prompt(text, sounds=[content], source=source)
      return self.forms.text_jobs([prompt], overrides, 1, None, self.engine.lanes['text'])

    [[*pieces]] = await self.run_jobs(request, await self.prepared(prepare))
    text = ''.join(piece.text for piece in pieces)
    if form == 'text':
      from starlette.responses import PlainTextResponse

      return PlainTextResponse(text + '\n')
    tokens = pieces[-1].counts
    counts = {'input_tokens': tokens[0], 'output_tokens': tokens[1], 'total_tokens': sum(tokens)}
    return json_response({'text': text, 'usage': {'type': 'tokens'} | counts})

  async def speak(self, request):
    """POST /v1/audio/speech; the voice is the name of a source, or default."""
    from starlette.responses import Response

    fields = await self.json_fields(request)
    text, voice = fields.require('input', str), fields.take('voice', str, 'default')
    form = fields.take('response_format', str, 'wav')
    if form not in SOUNDS:
      raise refused('response_format', form, 'is not supported', f'use one of {", ".join(SOUNDS)}')
    source = self.source_of('voice', voice)
    media, _ = await self.media(request, fields, text, 'audio', source, 1)
    rate = self.forms.run.tokenizers.audio.sample_rate
    encode = media_io.to_flac if form == 'flac' else media_io.to_wav
    content = await asyncio.to_thread(encode, media[0], rate)
    return Response(content[44:] if form == 'pcm' else content, media_type=f'{SOUNDS[form]}')

  def source_of(self, name, value):
    """Return the source that a field names, '' for default."""
    sources = self.forms.run.cfg.data.mixture
    if value != 'default' and value not in sources:
      names = ', '.join(['default', *sources])
      raise refused(name, value, 'is not known', f'use one of {names}')
    return '' if value == 'default' else value

  async def draw(self, request):
    """POST /v1/images/generations; the answer holds PNG files in base64."""
    fields = await self.json_fields(request)
    text, n = fields.require('prompt', str), fields.take('n', int, 1, 1, MOST_IMAGES)
    if (form := fields.take('response_format', str, 'b64_json')) != 'b64_json':
      raise refused('response_format', form, 'is not supported', 'use b64_json')
    if (kind := fields.take('output_format', str, 'png')) != 'png':
      raise refused('output_format', kind, 'is not supported', 'use png')
    scale = image_scale(fields.take('size', str, 'auto'), self.forms.run.tokenizers.image.shape)
    source = self.source_of('source', fields.take('source', str, 'default'))
    media, counts = await self.media(request, fields, text, 'image', source, n)
    encode = lambda image: {'b64_json': base64.b64encode(media_io.to_png(image, scale)).decode()}
    data = await asyncio.to_thread(lambda: [*map(encode, media)])
    tokens = {'input_tokens': counts[0], 'output_tokens': counts[1], 'total_tokens': sum(counts)}
    return json_response({'created': int(time.time()), 'data': data, 'usage': tokens})

  async def media(self, request, fields, text, to, source, n):
    """Make n images or sounds of a text -> (arrays, tokens of prompt and answer)."""
    guidance = fields.take('guidance', float, 1.0, 0, 100)
    overrides = request_fields.take_sampling(fields)
    fields.refuse_rest('source', 'guidance', *request_fields.SAMPLING)

    def prepare():
      prompt = self.forms.prompt(text, to=to, source=source)
      return [self.forms.media_job(prompt, to, overrides, n, guidance)]

    [[media]] = await self.run_jobs(request, await self.prepared(prepare))
    return media.values, media.counts

  # ---------------------------------------------------------------------------------------- helpers

  async def run_jobs(self, request, jobs):
    """Run jobs to their end -> the events of each."""
    generation = streams.Generation(self.engine, jobs)
    with contextlib.closing(generation):
      return await streams.unless_gone(request.receive, self.collect(generation, time.monotonic()))

  async def json_fields(self, request):
    """Read a JSON body and check its model -> Fields."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':  # which a page of another site cannot send without being asked
      raise RequestError(f'Content-Type: {kind} is not JSON\nfix: send application/json', status=415)
    fields = Fields.of_json(await request.body())
    self.check_model(fields.take('model', str))
    return fields

  async def prepared(self, prepare):
    """Return prepare(), from another thread."""
    async with self.preparing:
      return await asyncio.to_thread(prepare)


KNOWN = ('n', 'stream', 'stream_options', 'stop', 'source', *request_fields.SAMPLING)


def take_prompts(fields):
  """Return the prompts of a completion: texts, or lists of token ids."""
  value = fields.values.pop('prompt', '')
  is_ids = lambda x: isinstance(x, list) and x != [] and all(type(i) is int for i in x)
  values = value if isinstance(value, list) and not is_ids(value) else [value]
  if not values or not all(isinstance(x, str) or is_ids(x) for x in values):
    raise refused(
      'prompt', value, 'is not a text, a list of token ids, or a list of them', 'give one of them'
    )
  return values


def take_text_options(fields, prompts):
  """Return the fields n, stream and include_usage of a request for texts."""
  n = fields.take('n', int, 1, 1)
  if n * prompts > MOST_CHOICES:
    raise refused('n', n, f'for {prompts} prompts is too many', f'ask for at most {MOST_CHOICES} texts')
  stream, options = fields.take('stream', bool, False), Fields(fields.take('stream_options', dict, {}))
  include_usage = options.take('include_usage', bool, False)
  options.take('include_obfuscation', bool)
  options.refuse_rest('include_usage')
  return dict(n=n, stream=stream, include_usage=include_usage)


def job_options(options):
  """Return those of the options that a TextJob has."""
  return {name: options[name] for name in ('alternatives', 'wants_tokens')}


def count_usage(ends, n):
  """Return the usage of the last events of n texts for each prompt."""
  return replies.usage([(*piece.counts, i % n == 0) for i, piece in enumerate(ends)])


def parse_number(name, text):
  """Return a number of a form field."""
  try:
    return float(text)
  except ValueError:
    raise refused(name, text, 'is not a number', 'give a number') from None


def image_scale(size, shape):
  """Return the factor that enlarges images [Y, X, A] to a size such as 256x256; auto: 1."""
  height, width = shape[:2]
  if size == 'auto':
    return 1
  for scale in range(1, MOST_SIDE // max(height, width) + 1):
    if size == f'{width * scale}x{height * scale}':
      return scale
  raise refused(
    'size', size, 'is no multiple of what the run draws', f'use auto or {width}x{height} times a number'
  )
