"""What a request must pass before an endpoint sees it: host, origin, token, rate, size and time.

A web page of another site can send requests to 127.0.0.1, directly (the browser adds its Origin) or by a
name of its own that it points there (which stands in Host): both are refused.
"""

import asyncio
import collections
import hmac
import time
import urllib.parse

from gpt_jax.workbench.serving.errors import RequestError, error_response

LOCAL = ('127.0.0.1', 'localhost', '::1')
MOST_ADDRESSES = 10_000  # whose rates are remembered
SECONDS = 60.0  # for a whole body, and for each write to a client
OPEN = ('/health',)  # paths without a token


class Guard:
  """ASGI middleware in front of an application.

  token: '' for none; then Host must be a local name. most_bytes: of a body. rate: requests a minute of one
  address, 0 for no limit. paths: those that metrics name.
  """

  def __init__(self, app, metrics, token='', most_bytes=1 << 24, rate=0, paths=(), seconds=SECONDS):
    self.app, self.metrics, self.token = app, metrics, token
    self.most_bytes, self.rate, self.paths, self.seconds = most_bytes, rate, paths, seconds
    self.budgets = collections.OrderedDict()  # {address: (requests left, time)}

  async def __call__(self, scope, receive, send):
    """Answer a request, or refuse it."""
    if scope['type'] == 'lifespan':
      return await self.app(scope, receive, send)
    if scope['type'] != 'http':
      return await send({'type': 'websocket.close', 'code': 1008})
    start, status = time.monotonic(), 0

    async def timed_send(message):
      nonlocal status
      status = message.get('status', status)
      if message['type'] == 'http.response.start':
        message['headers'] = [*message.get('headers', ()), (b'x-content-type-options', b'nosniff')]
      async with asyncio.timeout(self.seconds):
        await send(message)

    try:
      self.check(scope)
      await self.app(scope, self.limited(scope, receive), timed_send)
    except RequestError as error:
      if status:
        raise
      await error_response(error)(scope, receive, timed_send)
    except TimeoutError:  # a client that does not read
      self.metrics.count('aborted')
    finally:
      path = scope['path'] if scope['path'] in self.paths else 'other'
      self.metrics.count('requests', path=path, status=status)
      self.metrics.observe('request_seconds', time.monotonic() - start)

  def check(self, scope):
    """Raise RequestError for a request that must not be answered."""
    headers = collections.defaultdict(list)
    for name, value in scope['headers']:
      headers[name.decode('latin-1').lower()].append(value.decode('latin-1'))
    one = lambda name: headers[name][0] if len(headers[name]) == 1 else ''
    host, origin = one('host'), ''.join(headers['origin'][:1])
    if not self.token and address_of(f'//{host}').hostname not in LOCAL:
      raise RequestError(
        f'Host: {host} is not a name of this machine alone\nfix: use http://127.0.0.1, or set GPT_JAX_TOKEN',
        status=403,
      )
    site = one('sec-fetch-site')
    if site in ('cross-site', 'same-site') or (origin and address_of(origin).netloc != host):
      raise RequestError(
        f'Origin: {origin or site} is another site\nfix: call the server from a program, or its own pages',
        status=403,
      )
    self.check_rate((scope.get('client') or ('',))[0])
    kind, _, token = one('authorization').partition(' ')
    is_right = hmac.compare_digest(token.strip().encode(), self.token.encode()) and kind.lower() == 'bearer'
    if self.token and not is_right and scope['path'] not in OPEN:
      raise RequestError(
        'the token is missing or wrong\nfix: send the header Authorization: Bearer TOKEN '
        '(api_key of the openai client)',
        status=401,
        code='invalid_api_key',
      )
    length = one('content-length')
    if length and not (length.isascii() and length.isdigit()):
      raise RequestError(f'Content-Length: {length} is not a number\nfix: send its bytes', status=400)
    if length and int(length[:20]) > self.most_bytes:
      raise self.too_large(length[:20])

  def too_large(self, size):
    """Return the error of a body beyond most_bytes."""
    return RequestError(
      f'the body has {size} bytes, more than {self.most_bytes}\nfix: send less, or serve with --max_body',
      status=413,
    )

  def check_rate(self, address):
    """Take a request from the budget of an address, which refills; RequestError if it is empty."""
    if not self.rate:
      return
    now, most = time.monotonic(), max(1.0, self.rate / 6)  # a burst: what ten seconds allow
    left, before = self.budgets.pop(address, (most, now))
    left = min(most, left + (now - before) * self.rate / 60)
    self.budgets[address] = max(0.0, left - 1), now
    while len(self.budgets) > MOST_ADDRESSES:
      self.budgets.popitem(last=False)
    if left < 1:
      raise RequestError(
        f'more than {self.rate} requests a minute\nfix: wait, or serve with a higher --rate', status=429
      )

  def limited(self, scope, receive):
    """Return receive() that ends a body which is too long or too slow with RequestError."""
    size, is_whole, end = 0, False, asyncio.get_running_loop().time() + self.seconds

    async def limited_receive():
      nonlocal size, is_whole
      if is_whole:  # only the end of the connection is to come
        return await receive()
      try:
        async with asyncio.timeout_at(end):
          message = await receive()
      except TimeoutError:
        raise RequestError(
          f'the body was not whole after {self.seconds:g} s\nfix: send it at once', status=408
        ) from None
      size += len(message.get('body', b''))
      is_whole = not message.get('more_body', False)
      if size > self.most_bytes:
        raise self.too_large(f'{size} or more')
      return message

    return limited_receive


def address_of(url):
  """Return the parts of a URL; empty ones for a malformed URL."""
  try:
    return urllib.parse.urlsplit(url)
  except ValueError:
    return urllib.parse.urlsplit('')
