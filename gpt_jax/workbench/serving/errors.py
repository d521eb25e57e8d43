"""Errors of requests as OpenAI's clients expect them: a status, and JSON with the cause and the fix."""

import json

TYPES = {401: 'authentication_error', 403: 'permission_error', 429: 'rate_limit_error', 500: 'server_error'}
TYPES |= {503: 'server_error'}


class RequestError(ValueError):
  """A request that is refused; its text has two lines, the cause and the fix."""

  def __init__(self, message, status=400, param=None, code=None):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code


def error_body(error):
  """Return (status, JSON object) of an error; the text of one that no request has caused stays here."""
  status = getattr(error, 'status', 400 if '\nfix:' in str(error) else 500)
  message = str(error)
  if '\nfix:' not in message:
    message = 'the server failed\nfix: see its output'
  kind = TYPES.get(status, 'invalid_request_error')
  body = {'message': message, 'type': kind, 'param': getattr(error, 'param', None)}
  return status, {'error': body | {'code': getattr(error, 'code', None)}}


def to_json(value):
  """Return JSON in ASCII: lone surrogates are escaped, and NaN is an error here, not at the client."""
  return json.dumps(value, allow_nan=False).encode()


def json_response(value, status=200, headers=None):
  """Return a Starlette response."""
  from starlette.responses import Response

  return Response(to_json(value), status, headers, 'application/json')


def error_response(error):
  """Return the Starlette response of an exception."""
  status, body = error_body(error)
  headers = {'Retry-After': '1'} if status in (429, 503) else {}
  if status == 401:
    headers['WWW-Authenticate'] = 'Bearer'
  if status in (408, 413):
    headers['Connection'] = 'close'
  return json_response(body, status, headers)
