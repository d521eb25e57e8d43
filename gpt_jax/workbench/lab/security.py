"""What the lab answers to whom: only pages of its own, on this machine.

A page of another site that is open in the same browser may send requests to 127.0.0.1 too. It is refused by
the host that the request names (a name that another site points here: DNS rebinding), by its origin, and by
the browser's own note on where a request comes from (Sec-Fetch-Site, w3.org/TR/fetch-metadata). Whatever a
run's files hold, no script of theirs runs: the policy allows only the lab's own files.
"""

import urllib.parse

HOSTS = ('127.0.0.1', 'localhost', '::1')
MAX_BODY = 32 << 20  # bytes of a request: a picture and a sound
POLICY = '; '.join(
  (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "style-src-attr 'unsafe-inline'",  # the reports' figures; styles fetch nothing: see img-src
    "img-src 'self' data: blob:",
    "media-src 'self' data: blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  )
)
HEADERS = {
  'content-security-policy': POLICY,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
}


def denial_reason(method, path, headers):
  """Return why a request is refused, '' if it is not. headers: {lower-case name: text}."""
  host = headers.get('host', '')
  if hostname(host) not in HOSTS:
    return f'host {host[:100]!r} is not this machine'
  origin = headers.get('origin')
  if origin is not None and origin != f'http://{host}':
    return 'the request comes from another site'
  # A link from elsewhere may open the first page, which shows nothing by itself.
  if path != '/' and headers.get('sec-fetch-site', 'same-origin') not in ('same-origin', 'none'):
    return 'the request comes from another site'
  if method not in ('GET', 'HEAD', 'POST'):
    return f'method {method[:20]!r} is not used'
  if method == 'POST' and headers.get('content-type', '').partition(';')[0] != 'application/json':
    return 'the request is not JSON'
  if not headers.get('content-length', '0').isdecimal() or int(headers.get('content-length', '0')) > MAX_BODY:
    return f'the request has more than {MAX_BODY >> 20} MiB'
  return ''


def hostname(host):
  """Return the name of HOST:PORT, '' for anything else."""
  try:
    parts = urllib.parse.urlsplit(f'//{host}')
    return (parts.hostname or '') if parts.port != 0 and not (parts.path or parts.username) else ''
  except ValueError:
    return ''
