"""The web application: addresses, each a function of (server, request), and what they share.

texts.py and media.py have the functions of the endpoints that generate.
"""

import asyncio
import contextlib
import sys
import time
import traceback

from gpt_jax.workbench.serving import fields as request_fields
from gpt_jax.workbench.serving import media, streams, texts
from gpt_jax.workbench.serving.errors import RequestError, error_response, json_response
from gpt_jax.workbench.serving.fields import Fields

AT_ONCE = 2  # requests that are decoded and tokenized at once: a picture may take 200 MB meanwhile
LARGE = 1 << 16  # bytes of a body beyond which another thread decodes it
ENDPOINTS = {  # below /v1
  'completions': texts.completions,
  'chat/completions': texts.chat,
  'audio/transcriptions': media.transcribe,
  'audio/speech': media.speak,
  'images/generations': media.draw,
}


class Server:
  """The endpoints of one run and its adapters. `app` is the ASGI application; the engine must be started.

  models: {name: forms.Forms}, the run first.
  """

  def __init__(self, models, engine, metrics):
    self.models, self.engine, self.metrics = models, engine, metrics
    self.name, self.created, self.preparing = next(iter(models)), int(time.time()), asyncio.Semaphore(AT_ONCE)

  def routes(self):
    """Return {path: (method, function of the request)}."""
    table = {
      '/health': ('GET', self.health),
      '/metrics': ('GET', self.metrics_text),
      '/v1/models': ('GET', self.list_models),
      '/v1/models/{name}': ('GET', self.one_model),
    }
    bind = lambda handler: lambda request: handler(self, request)
    return table | {f'/v1/{name}': ('POST', bind(handler)) for name, handler in ENDPOINTS.items()}

  def app(self):
    """Return the Starlette application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    async def on_http_error(request, error):
      method, _ = self.routes().get(request.url.path, ('', None))
      fix = f'fix: send a {method}' if method else 'fix: use one of ' + ', '.join(self.routes())
      return error_response(
        RequestError(f'{error.detail}: {request.url.path[:100]}\n{fix}', error.status_code)
      )

    routes = [Route(p, self.answering(h), methods=[method]) for p, (method, h) in self.routes().items()]
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

  async def metrics_text(self, request):
    """Answer in the text format of Prometheus."""
    from starlette.responses import Response

    (running, waiting), (used, room) = self.engine.counts(), self.engine.cache_tokens()
    gauges = dict(running=running, waiting=waiting, cache_tokens=used, cache_room=room)
    text = self.metrics.render(**gauges)
    return Response(text, media_type='text/plain; version=0.0.4')

  def describe(self, name):
    """Return the model object: OpenAI's fields, the base of an adapter, and what the model can do."""
    forms = self.models[name]
    facts = {'id': name, 'object': 'model', 'created': self.created, 'owned_by': 'gpt_jax'}
    facts |= {} if name == self.name else {'parent': self.name}
    paths = [f'/v1/{endpoint}' for endpoint in ENDPOINTS if forms.endpoints[endpoint]]
    return facts | {'endpoints': ['/v1/models', *paths]} | forms.describe()

  async def list_models(self, request):
    """List the run and its adapters."""
    return json_response({'object': 'list', 'data': [*map(self.describe, self.models)]})

  async def one_model(self, request):
    """Describe one model."""
    self.forms_of(name := request.path_params['name'])
    return json_response(self.describe(name))

  # -------------------------------------------------------------------------------- for the endpoints

  def forms_of(self, name, endpoint=''):
    """Return the Forms of a model, None for the run; RequestError for others, and what one cannot do."""
    name = self.name if name is None else name
    if name not in self.models:
      raise RequestError(
        f'model {request_fields.abbreviate(name)} is not served\nfix: use {" or ".join(self.models)}',
        status=404,
        param='model',
        code='model_not_found',
      )
    if endpoint and not self.models[name].endpoints[endpoint]:
      raise RequestError(
        f'{name} was not trained for /v1/{endpoint}\nfix: see /v1/models for what it can do', status=404
      )
    return self.models[name]

  async def json_fields(self, request, endpoint):
    """Read a JSON body -> (Forms of its model, Fields)."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':  # which a page of another site cannot send without being asked
      raise RequestError(f'Content-Type: {kind} is not JSON\nfix: send application/json', status=415)
    body = await request.body()
    read = lambda: Fields.of_json(body)
    fields = await self.in_thread(read) if len(body) > LARGE else read()
    return self.forms_of(fields.take('model', str), endpoint), fields

  async def in_thread(self, work):
    """Return work(), from another thread."""
    async with self.preparing:
      return await asyncio.to_thread(work)

  async def run_jobs(self, request, jobs):
    """Run jobs to their end -> the events of each."""
    generation = streams.Generation(self.engine, jobs)
    with contextlib.closing(generation):
      return await streams.unless_gone(request.receive, self.collect(generation, time.monotonic()))

  async def collect(self, generation, start):
    """Return all events of each job, in the order of the jobs."""
    events = [[] for _ in generation.jobs]
    while (item := await generation.next()) is not None:
      if not any(events):
        self.metrics.observe('first_token_seconds', time.monotonic() - start)
      events[item[0]].append(item[1])
    return events
