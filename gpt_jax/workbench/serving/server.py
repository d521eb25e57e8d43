"""The web server of a run: uvicorn behind a guard, on this machine alone unless told otherwise."""

import dataclasses
import os
import queue
import signal
import socket
from pathlib import Path

from gpt_jax.model.adapter_bank import AdapterBank
from gpt_jax.runs.loggers import say
from gpt_jax.sampling import decoding_layout, prompt_batch
from gpt_jax.workbench.serving.app import Server
from gpt_jax.workbench.serving.decode_batch import TOGETHER
from gpt_jax.workbench.serving.engine import Engine
from gpt_jax.workbench.serving.forms import Forms
from gpt_jax.workbench.serving.guard import LOCAL, SECONDS, Guard
from gpt_jax.workbench.serving.jobs import Failure
from gpt_jax.workbench.serving.metrics import Metrics

TOKEN = 'GPT_JAX_TOKEN'  # environment variable
LEAST_TOKEN = 16  # characters, for other machines


@dataclasses.dataclass(frozen=True)
class ServeConfig:
  """Where a server listens, and its limits."""

  host: str = '127.0.0.1'  # address to listen at; any but this machine's own needs GPT_JAX_TOKEN
  port: int = 8000  # 0: a free one
  slots: int = 8  # texts that are generated at once
  max_length: int = 0  # most tokens of prompt and answer; 0: the context of the model
  queue: int = 64  # generations that may wait; a request that finds so many waiting gets status 503
  rate: int = 0  # requests a minute of one address; 0: no limit
  max_body: int = 16  # MiB of a request

  def __post_init__(self):
    least = {'port': 0, 'slots': 1, 'max_length': 0, 'queue': 1, 'rate': 0, 'max_body': 1}
    for name, low in least.items():
      if getattr(self, name) < low:
        raise ValueError(f'--{name}={getattr(self, name)} is out of range\nfix: use {low} or more')


def check_token(host, token):
  """Raise ValueError for a server that other machines reach without a token."""
  if host not in LOCAL and len(token) < LEAST_TOKEN:
    raise ValueError(
      f'--host={host} lets other machines in, and {TOKEN} has {len(token)} characters\n'
      f'fix: set {TOKEN} to a secret of at least {LEAST_TOKEN}, such as `openssl rand -hex 16` prints'
    )


def build(run, cfg, token='', adapters=()):
  """Return (ASGI application, Engine, app.Server) of a trained.TrainedRun, whose model is taken over.

  adapters: {name: TrainedRun whose model is a tree of adapters on the model of `run`}.
  """
  adapters, name, metrics = dict(adapters), Path(run.workdir).resolve().name, Metrics()
  check_adapters(run, name, adapters)
  bank = AdapterBank(run.model, {key: own.model for key, own in adapters.items()}) if adapters else None
  run = run._replace(model=decoding_layout.prepare_model(run.model, donate=True))
  adapters = {key: own._replace(model=run.model) for key, own in adapters.items()}
  models = {name: Forms(run, name, cfg.max_length)}
  for number, (key, own) in enumerate(adapters.items(), 1):
    context = own.cfg.model.context  # which may be shorter than that of the base
    models[key] = Forms(own, key, min(cfg.max_length or context, context), number)
  engine = Engine([run, *adapters.values()], metrics, cfg.slots, cfg.queue, bank)
  server = Server(models, engine, metrics)
  paths = tuple(server.routes())
  guard = Guard(server.app(), metrics, token, cfg.max_body << 20, cfg.rate, paths, SECONDS)
  return guard, engine, server


def check_adapters(run, name, adapters):
  """Raise ValueError for adapters whose names or settings the run excludes."""
  for key, own in adapters.items():
    if key == name:
      raise ValueError(f'--adapters has {key}, the name of --workdir\nfix: give it another name')
    if own.cfg.sample.block != run.cfg.sample.block:
      raise ValueError(
        f'sample.block of {own.workdir} is not that of {run.workdir}\nfix: serve it alone, or set --block'
      )


def warm_up(engine, forms):
  """Compile what most requests need, for a text alone and for groups; raises what a text fails with."""
  prompt = prompt_batch.Prompt([forms.run.tokenizers.vocabulary.special(forms.run.tokenizers.start)])
  for n in sorted({1, 2, min(TOGETHER, engine.slots), engine.slots}):
    events = queue.Queue()
    jobs = forms.text_jobs([prompt], {}, n, None, engine.batches['text'].end_ids)
    for job in jobs:
      job.emit = events.put
    engine.submit(jobs)
    event = events.get()
    engine.cancel(jobs)
    if isinstance(event, Failure):
      raise event.error


def listen(cfg):
  """Return a bound socket; ValueError for an address or a port that cannot be had."""
  try:
    family = socket.getaddrinfo(cfg.host, cfg.port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((cfg.host, cfg.port), family=family)
  except (OSError, OverflowError) as error:
    fix = 'choose another --port, or 0 for a free one'
    raise ValueError(f'--host={cfg.host} --port={cfg.port}: {error}\nfix: {fix}') from None


def serve(run, cfg, adapters=()):
  """Serve a trained.TrainedRun, and adapters on it, until the process is asked to stop."""
  token = os.environ.get(TOKEN, '')
  check_token(cfg.host, token)
  with listen(cfg) as sock:
    app, engine, server = build(run, cfg, token, adapters)
    engine.start()
    try:
      warm_up(engine, server.forms_of(None))
      host = f'[{cfg.host}]' if ':' in cfg.host else cfg.host
      paths = ', '.join(path.removeprefix('/v1/') for path in server.describe(server.name)['endpoints'])
      names = ', '.join(server.models)
      say(f'{names}: http://{host}:{sock.getsockname()[1]}/v1 ({paths}); Ctrl-C ends', flush=True)
      signal.set_wakeup_fd(-1)  # where the watchdog hears of Ctrl-C and ends the process
      for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn has its own while it runs, then raises them again
      web_server(app, cfg.queue + cfg.slots + 64).run(sockets=[sock])
    finally:
      engine.stop()


def web_server(app, most_connections):
  """Return the uvicorn.Server of an application."""
  import uvicorn
  from uvicorn.protocols.http.h11_impl import H11Protocol

  class Protocol(H11Protocol):
    """Closes a connection that sends no whole head of a request in time."""

    def connection_made(self, transport):
      super().connection_made(transport)
      self.watch(False)

    def watch(self, was_idle):
      """Look at the connection twice within SECONDS."""
      if self.transport.is_closing():
        self.transport.abort()  # a client that reads nothing would keep it open
        return
      is_idle = self.cycle is None or self.cycle.response_complete
      if is_idle and was_idle:
        self.transport.close()
      self.loop.call_later(SECONDS / 2, self.watch, is_idle)

  options = dict(log_level='warning', access_log=False, server_header=False, lifespan='off', ws='none')
  limits = dict(limit_concurrency=most_connections, timeout_keep_alive=15, timeout_graceful_shutdown=5)
  return uvicorn.Server(uvicorn.Config(app, http=Protocol, loop='asyncio', **options, **limits))
