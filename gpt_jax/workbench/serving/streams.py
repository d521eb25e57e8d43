"""From the engine's thread to a client and back: events of jobs, and clients that leave."""

import asyncio
import contextlib

from gpt_jax.workbench.serving.engine import Busy
from gpt_jax.workbench.serving.errors import RequestError
from gpt_jax.workbench.serving.jobs import Failure


class Gone(Exception):
  """The client has left."""


class Generation:
  """The jobs of one request, in the engine until all have ended or `close` is called."""

  def __init__(self, engine, jobs):
    self.engine, self.jobs, self.events, self.open = engine, jobs, asyncio.Queue(), len(jobs)
    loop = asyncio.get_running_loop()
    for index, job in enumerate(jobs):
      job.emit = lambda event, index=index: _send(loop, self.events, (index, event))
    try:
      engine.submit(jobs)
    except Busy as busy:
      raise RequestError(str(busy), status=503) from None

  async def next(self):
    """Return (index of a job, its next event), None after the last one; raises what a job failed with."""
    if not self.open:
      return None
    index, event = await self.events.get()
    if isinstance(event, Failure):
      raise event.error
    self.open -= bool(getattr(event, 'finish', True))
    return index, event

  def close(self):
    """Cancel what is still in progress."""
    if self.open:
      self.engine.cancel(self.jobs)


def _send(loop, events, item):
  with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all clients
    loop.call_soon_threadsafe(events.put_nowait, item)


async def unless_gone(receive, coroutine):
  """Return the coroutine's result; cancel it and raise Gone if the client leaves first."""

  async def leave():
    while (await receive())['type'] != 'http.disconnect':
      pass

  task, gone = asyncio.ensure_future(coroutine), asyncio.ensure_future(leave())
  try:
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise Gone
    return await task
  finally:
    for each in (task, gone):
      each.cancel()
    await asyncio.gather(task, gone, return_exceptions=True)


class EventStream:
  """A response of server-sent events: the chunks of an async iterator, until the client leaves."""

  def __init__(self, chunks, close):
    self.chunks, self.close = chunks, close

  async def __call__(self, scope, receive, send):
    """Send the chunks; `close` is called in any case."""
    headers = [(b'content-type', b'text/event-stream; charset=utf-8'), (b'cache-control', b'no-store')]
    try:
      await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
      with contextlib.suppress(Gone):
        await unless_gone(receive, self._write(send))
    finally:
      self.close()

  async def _write(self, send):
    async for chunk in self.chunks:
      await send({'type': 'http.response.body', 'body': chunk, 'more_body': True})
    await send({'type': 'http.response.body', 'body': b''})
