"""The lab's server: a table of addresses, each a function of (lab, arguments), under Starlette and uvicorn.

A handler returns a dict (sent as JSON), (bytes, type), or an iterator of dicts, which are sent as JSON lines
while they are made. Handlers run in threads, so a slow one holds up no other.
"""

import itertools
import json
import pathlib
import socket
import threading

from gpt_jax.runs import records
from gpt_jax.runs.reading import check_types
from gpt_jax.workbench.lab import compare, documents, inside, models, playground, runs, security, studies
from gpt_jax.workbench.lab.index import Index

STATIC = pathlib.Path(__file__).parent / 'static'
REPORT_CSS = pathlib.Path(__file__).parents[2] / 'reports' / 'report.css'
MAX_CONNECTIONS = 64  # at once
TYPES = {'.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript', '.svg': 'image/svg+xml'}
GET = {
  '/api/runs': runs.list_runs,
  '/api/tree': runs.tree,
  '/api/run': runs.run_page,
  '/api/diff': runs.config_diff,
  '/api/curves': compare.curves,
  '/api/samples': compare.samples,
  '/api/studies': studies.list_studies,
  '/api/study': studies.study_page,
  '/api/models': models.list_models,
  '/api/data': documents.overview,
  '/api/data/rows': documents.rows,
  '/api/data/search': documents.search,
  '/api/data/document': documents.document,
  '/file': compare.sample_file,
}
POST = {
  '/api/inside': inside.look,
  '/api/difference': inside.difference,
  '/api/activations': inside.activations,
  '/api/sample': playground.sample,
}


class Lab:
  """What all requests share."""

  def __init__(self, root):
    self.index, self.models = Index(root), models.Models()
    self._lock, self._values = threading.RLock(), {}  # {key: (signature, value)}

  def cached(self, key, signature, make):
    """Return make(), or what it returned when the signature was the same."""
    with self._lock:
      known, value = self._values.get(key, (None, None))
      if known != signature:
        value = make()
        self._values[key] = signature, value
      return value


def build_app(root):
  """Return the ASGI application over the runs and studies below `root`.

  Raises FileNotFoundError without that folder, ImportError with a fix without starlette.
  """
  starlette = import_starlette()
  if not pathlib.Path(root).expanduser().is_dir():
    raise FileNotFoundError(f'root={root} is not a folder\nfix: give the folder of your runs as --root')
  lab, Route = Lab(root), starlette.routing.Route
  routes = [Route(path, respond(lab, handler, starlette)) for path, handler in GET.items()]
  routes += [
    Route(path, respond(lab, handler, starlette), methods=['POST']) for path, handler in POST.items()
  ]
  files = static_files()
  serve = lambda name: respond(lab, lambda lab, query: files[name], starlette)
  routes += [Route(f'/static/{name}', serve(name)) for name in files]
  routes += [Route('/', serve('index.html'))]
  return Guard(starlette.applications.Starlette(routes=routes), lab)


def import_starlette():
  """Return starlette with the modules that are used here; ImportError with a fix without it."""
  try:
    import starlette.applications
    import starlette.concurrency
    import starlette.responses
    import starlette.routing
  except ImportError as error:
    raise ImportError(f"launch.py lab needs starlette: {error}\nfix: pip install 'gpt_jax[lab]'") from error
  return starlette


def static_files():
  """Return {name: (content, type)} of the front end."""
  paths = [*sorted(STATIC.iterdir()), REPORT_CSS]
  charset = lambda path: f'{TYPES[path.suffix]}; charset=utf-8'
  return {path.name: (path.read_bytes(), charset(path)) for path in paths if path.suffix in TYPES}


def respond(lab, handler, starlette):
  """Return the Starlette endpoint of a handler; a user's error is status 400 or 404 with cause and fix."""
  Response, in_thread = starlette.responses.Response, starlette.concurrency.run_in_threadpool

  def to_json(value, status=200):
    content = json.dumps(records.to_json(value), ensure_ascii=False).encode('utf-8', 'backslashreplace')
    return Response(content, status, media_type='application/json')

  def call(query):
    try:
      value = handler(lab, query)
      if isinstance(value, (dict, tuple)):
        return value, 200
      first = next(value, None)  # an error before the first piece has a status of its own
      return (itertools.chain([first] if first is not None else [], value)), 200
    except (ValueError, OSError, ImportError, MemoryError) as error:
      return describe_error(error), 404 if isinstance(error, FileNotFoundError) else 400

  async def endpoint(request):
    try:
      query = await read_query(request)
    except (ValueError, RecursionError):
      return to_json({'error': 'the request is not a JSON object', 'fix': 'send one'}, 400)
    value, status = await in_thread(call, query)
    if isinstance(value, tuple):
      return Response(value[0], status, media_type=value[1])
    if isinstance(value, dict):
      return await in_thread(to_json, value, status)
    return starlette.responses.StreamingResponse(json_lines(value), media_type='application/x-ndjson')

  return endpoint


async def read_query(request):
  """Return the arguments of a request: {name: texts} of its address, or the JSON object of its body."""
  if request.method != 'POST':
    query = {}
    for name, value in request.query_params.multi_items():
      query.setdefault(name, []).append(value)
    return query
  content = bytearray()
  async for piece in request.stream():
    content += piece
    if len(content) > security.MAX_BODY:
      raise ValueError('the request is too large')
  return check_types(json.loads(content), dict)


def json_lines(values):
  """Yield each dict as a line of JSON; an error ends them as {error, fix}."""
  line = lambda value: (json.dumps(records.to_json(value)) + '\n').encode()
  try:
    for value in values:
      yield line(value)
  except (ValueError, OSError) as error:
    yield line(describe_error(error))


def describe_error(error):
  """Return {error, fix} of a user's error."""
  cause, _, fix = str(error).partition('\nfix: ')
  return {'error': cause or type(error).__name__, 'fix': fix}


class Guard:
  """Refuse requests that do not come from a page of the lab; add the headers that keep its pages closed."""

  def __init__(self, app, lab):
    self.app, self.lab = app, lab

  async def __call__(self, scope, receive, send):
    """Serve one connection."""
    if scope['type'] != 'http':
      return await self.app(scope, receive, send)
    headers = {name.decode('latin-1').lower(): text.decode('latin-1') for name, text in scope['headers']}
    extra = [(name.encode(), text.encode()) for name, text in security.HEADERS.items()]

    async def send_closed(message):
      if message['type'] == 'http.response.start':
        message = message | {'headers': [*message.get('headers', ()), *extra]}
      await send(message)

    if reason := security.denial_reason(scope['method'], scope['path'], headers):
      body = json.dumps({'error': reason, 'fix': 'open the address that launch.py lab printed'}).encode()
      kind = [(b'content-type', b'application/json')]
      await send_closed({'type': 'http.response.start', 'status': 403, 'headers': kind})
      return await send({'type': 'http.response.body', 'body': body})
    return await self.app(scope, receive, send_closed)


def serve(root, port, report=print):
  """Serve the lab on 127.0.0.1 until Ctrl-C.

  port: 0 for any free one. report: gets the line with the address. Raises ValueError for a port in use, and
  as `build_app` does.
  """
  app = build_app(root)
  try:
    import uvicorn
  except ImportError as error:
    raise ImportError(f"launch.py lab needs uvicorn: {error}\nfix: pip install 'gpt_jax[lab]'") from error
  with bind(port) as listener:
    threading.Thread(target=warm_up, args=(app.lab,), daemon=True).start()
    report(f'lab: http://127.0.0.1:{listener.getsockname()[1]} (Ctrl-C ends it)', flush=True)
    options = dict(log_level='warning', access_log=False, server_header=False, lifespan='off')
    uvicorn.Server(uvicorn.Config(app, limit_concurrency=MAX_CONNECTIONS, **options)).run([listener])


def bind(port):
  """Return a listening socket of 127.0.0.1."""
  listener = socket.socket()
  listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listener.bind(('127.0.0.1', port))
    listener.listen()  # who asks before the server is up waits, and is not refused
  except OSError as error:
    listener.close()
    raise ValueError(f'--port={port} cannot be used: {error.strerror}\nfix: give another, or 0') from error
  return listener


def warm_up(lab):
  """Read the runs, and import what draws, before someone asks."""
  lab.index.states()
  from gpt_jax.reports import run_report

  return run_report
