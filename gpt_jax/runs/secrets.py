"""Secrets: keep tokens, keys and passwords out of every file that a run writes.

One list of rules: a config that holds a secret is refused; in command lines, messages and diffs it becomes
`[redacted: KIND]`. A secret has a format of its own (FORMATS: the providers' documentation, and what the
detectors gitleaks and detect-secrets look for), or a name that says so (`password = ...`), or looks random.
Hashes are no secrets: sha256 digests, and 32 or 40 hex digits beside a word such as commit or digest.
"""

import atexit
import bisect
import collections
import io
import itertools
import math
import re
import threading

from gpt_jax.runs import records

KEY_LINES = 1000  # of a private key, at most
LONGEST_LINE = 1 << 16  # characters that wait for the end of a line
KEY_BEGIN = r'-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY'
# kind: pattern; every repetition is bounded by what follows it or by a count, so that time is linear
FORMATS = {
  'private key': r'-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----'
  r'(?:[\s\S]{0,20000}?-----END [A-Z0-9 ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----|(?:\s{0,9}[+ -]?[\w+/=]{16,})*)',
  'AWS key': r'\b(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}(?![A-Z0-9])',
  'Google key': r'\bAIza[\w-]{20,}|\bya29\.[\w-]{16,}|\bGOCSPX-[\w-]{16,}',
  'GitHub token': r'\b(?:gh[pousr]|github_pat)_\w{8,}',
  'GitLab token': r'\bgl[a-z]{2,6}-[\w-]{16,}',
  'Slack token': r'\b(?:xox[a-z]|xapp)[-.][\w.-]{8,}',
  'webhook': r'hooks\.slack\.com/\w+/[\w/-]{8,}|discord(?:app)?\.com/api/webhooks/[\w/-]{8,}',
  'npm token': r'\bnpm_\w{20,}',
  'PyPI token': r'\bpypi-[\w-]{16,}',
  'Hugging Face token': r'\b(?:hf|api_org)_[A-Za-z0-9]{8,}',
  'OpenAI or Anthropic key': r'\bsk-[\w-]{8,}',
  'Stripe key': r'\b(?:[srp]k_(?:live|test|prod)|whsec)_\w{8,}',
  'SendGrid key': r'\bSG\.[\w-]{16,}\.[\w-]{16,}',
  'Twilio key': r'\b(?:SK|AC)[0-9a-f]{32}\b',
  'W&B key': r'\bwandb_v1_\w{8,}|\blocal-[0-9a-f]{40}\b',
  'key': r'\b(?:nvapi|gsk|xai|dop_v1|shpat|lin_api|tskey|AGE-SECRET-KEY)[_-][\w-]{16,}',
  'JSON web token': r'\beyJ[\w-]{8,}\.eyJ[\w-]{4,}(?:\.[\w-]{0,2000})?',
  'authorization header': r'(?i:\b(?:bearer|basic)\s+(?=[\w.~+/-]{0,99}\d)[\w.~+/-]{12,}={0,2})',
  'password in a URL': r'(?<=://)[^/\s@\'"]{1,300}(?=@)',
  'token in a URL': r'(?i:(?<=[?&])(?:key|sig|'
  r'[\w-]{0,40}(?:token|secret|passw\w{0,4}|signature|credential|api_?key))=[^&\s\'"#]+)',
}
# Names whose value is a secret, by their ends; not max_new_tokens, or the key of a random generator.
SECRET_NAME = re.compile(
  r'(?i)secret|(?:passw(?:or)?d|passphrase|passcode|credentials?|\bpwd|_pwd|(?:api|auth|access|bearer|hub|bot)token'
  r'|(?:api|access|private|auth|account|wandb|signing|encryption|master|ssh|deploy|service|openai|anthropic|google'
  r'|gemini|azure|aws|stripe|mistral|cohere)[_-]?key)\d*$|(?:^|[_-])token$'
)
PATHS = ('privacy.secret',)  # config keys that name the file of a secret, which stays where it is
TEXT_TOKENS = (  # words before _token that make it one of a text
  *(
    'eos',
    'bos',
    'pad',
    'sep',
    'unk',
    'cls',
    'mask',
    'begin',
    'end',
    'start',
    'stop',
    'text',
    'image',
    'audio',
  ),
  *('first', 'last', 'next', 'new', 'per', 'one', 'each', 'special', 'has', 'is', 'max', 'min'),
)
ASSIGNMENT = re.compile(  # name, then = or : or => or := or a type and =
  r'(?P<open>[\'"]?)(?<![\w.-])(?P<name>[\w.-]{2,200}+)[\'"`\]]{0,2}+[ \t]{0,4}+'
  r'(?P<sign>:[ \t]{0,4}[\w\[\]. |]{1,40}=|[:=]=?>?)[ \t]{0,4}'
)
FLAG = re.compile(r'(?<![\w-])--(?P<name>[\w.-]{2,200}+)[ \t\0]{1,4}(?![\0-])')
QUOTE = re.compile(r'(?i)[rbfu]{0,2}([\'"`])')
NO_VALUE = re.compile(r'(?i)\s*(?:none|null|true|false|\*+|\[redacted.*|\$\{?[a-z_]+\}?)?[\s,;)}\]]*')
HASH_WORD = re.compile(
  r'(?i)commit|hash|sha\d|digest|revision|\brev\b|checksum|md5|\bgit\b|fingerprint|\bindex '
)
WORD = re.compile(r'(?<![\w+/.@~%-])[\w+/-]{20,}+={0,2}+(?![\w+/@~%-]|\.\w)')
ABSOLUTE_PATH = re.compile(r'/[A-Z]?[a-z]{2,15}/')  # its folders may have names drawn by chance
LINE_START = re.compile(r'[-+ ]?')  # of a diff


def find_secrets(text, code=False, prose=False):
  """Return [(start, end, kind)] of the secrets in a text, in order; they may overlap.

  code: of a programming language, where only quoted texts are values. prose: `name: value` is no assignment.
  """
  spans = [(*m.span(), kind) for kind, rule in FORMATS.items() for m in re.finditer(rule, text)]
  for rule in (ASSIGNMENT, FLAG):
    line_end = value_end = at = 0
    while match := rule.search(text, at):
      at = match.end('name')  # in `error: password=x` the second name is no type of the first
      is_colon = rule is ASSIGNMENT and match['sign'] == ':' and not match['open']
      if match.start() < value_end or (prose and is_colon) or not is_secret_name(match['name']):
        continue
      start = match.end()
      if start >= line_end:
        line_end = find_line_end(text, start)
      start, value_end = value_span(text, start, line_end, code)
      if start < value_end:
        spans.append((start, value_end, 'password or key'))
  for match in WORD.finditer(text):
    if looks_random(match[0], text[max(0, match.start() - 80) : match.start()]):
      spans.append((*match.span(), 'random string'))
  return sorted(spans)


def is_secret_name(name):
  """Whether the value of this name is a secret: api_key, HF_TOKEN, db.password."""
  last = name.rpartition('.')[2]
  *_, before, end = ['', '', *re.split(r'[_-]', last.lower())]
  return bool(SECRET_NAME.search(last)) and not (end == 'token' and before in TEXT_TOKENS)


def find_line_end(text, start):
  """Return where the line, or the argument of a command line, at a place of a text ends."""
  ends = (text.find(character, start) for character in '\n\0')
  return min((end for end in ends if end >= 0), default=len(text))


def value_span(text, start, end, code):
  """Return (start, end) of the value that begins at a place of a text; an empty one if there is none."""
  if quote := QUOTE.match(text, start, end):
    closing = (text.find if code else text.rfind)(quote[1], quote.end(), end)  # rather too much
    start, end = quote.end(), end if closing < 0 else closing
  elif code:
    return start, start
  return (start, start) if NO_VALUE.fullmatch(text, start, end) else (start, end)


def looks_random(word, before=''):
  """Whether a word of 20 characters or more looks drawn by chance; `before`: the text before it.

  Random letters and digits change between kinds of characters at most places, names and words at few. Numbers
  and absolute paths do not count: temporary folders have random names.
  """
  if ABSOLUTE_PATH.match(word) or not re.search('[A-Za-z]', word):
    return False
  word = word.strip('+-=/')
  runs = [run for run in re.split(r'[^A-Za-z0-9]', word) if run]
  hexadecimal = [run for run in runs if re.fullmatch(r'[0-9a-f]{20,}|[0-9A-F]{20,}', run)]
  if hexadecimal:
    return runs == [word] and len(word) in (32, 40) and not HASH_WORD.search(before)
  joined = ''.join(runs)
  kinds = ['a' if c.islower() else 'A' if c.isupper() else '0' for c in joined]
  counts = collections.Counter(joined)
  entropy = -sum(n / len(joined) * math.log2(n / len(joined)) for n in counts.values())
  changes = sum(a != b for a, b in itertools.pairwise(kinds)) / max(len(kinds) - 1, 1)
  longest = max(map(len, runs), default=0)
  if len(set(kinds)) == 3:
    return len(joined) >= 24 and longest >= 12 and changes >= 0.4 and entropy >= 3.7
  return set(kinds) >= {'0'} and longest >= 28 and changes >= 0.25 and entropy >= 3.7 and len(runs) == 1


# ------------------------------------------------------------------------------------- redacting


def redact(text):
  """Return the text with each secret as [redacted: KIND]."""
  parts, done = [], 0
  for start, end, kind in find_secrets(text):
    if start >= done:
      parts += [text[done:start], f'[redacted: {kind}]']
    done = max(done, end)
  return ''.join([*parts, text[done:]])


def redact_lines(text, code=False):
  """Return (the text with `[redacted: KIND]` for each line that holds a secret, {kind: lines}).

  The first character of a line of a diff stays.
  """
  lines = re.findall(r'[^\n]*\n|[^\n]+', text)
  starts = list(itertools.accumulate(map(len, lines), initial=0))
  kinds = {}  # number of a line: kind of its first secret
  for start, end, kind in find_secrets(text, code):
    first, last = (bisect.bisect_right(starts, at) - 1 for at in (start, max(start, end - 1)))
    for k in range(first, last + 1):
      kinds.setdefault(k, kind)
  for k, kind in kinds.items():
    lines[k] = f'{LINE_START.match(lines[k])[0]}[redacted: {kind}]\n'
  return ''.join(lines), dict(collections.Counter(kinds.values()))


class RedactedStream(io.TextIOBase):
  """A text stream that passes whole lines on to another, with each secret as [redacted: KIND].

  A line without an end waits for it, or for the end of the process.
  """

  def __init__(self, stream):
    self.stream, self.rest, self.lock = stream, '', threading.Lock()
    self.key_lines = 0  # lines that a private key may still have
    atexit.register(self.write_rest)

  def write(self, text):
    """Write a text; what follows its last line break waits for the next one."""
    with self.lock:
      *lines, self.rest = re.split(r'(?<=[\n\r])', self.rest + text)
      if len(self.rest) > LONGEST_LINE:
        lines, self.rest = [*lines, self.rest], ''
      self._pass_on(lines)
    return len(text)

  def write_rest(self):
    """Write the line that has no end yet."""
    with self.lock:
      self._pass_on([self.rest])
      self.rest = ''

  def _pass_on(self, lines):
    if lines and not self.stream.closed:
      self.stream.write(''.join(map(self._redact, lines)))
      self.stream.flush()

  def _redact(self, line):
    ends = '-----END ' in line
    if self.key_lines:
      self.key_lines = 0 if ends else self.key_lines - 1
      return ''
    if (begin := re.search(KEY_BEGIN, line)) and not ends:
      self.key_lines = KEY_LINES
      return f'{redact(line[: begin.start()])}[redacted: private key]\n'
    return redact(line)

  @property
  def encoding(self):
    """The encoding of the other stream."""
    return self.stream.encoding

  def fileno(self):
    """The file descriptor of the other stream."""
    return self.stream.fileno()


def describe(counts):
  """Return '3 lines: 2 of a private key, 1 of an AWS key' of {kind: lines}."""
  total = sum(counts.values())
  kinds = ', '.join(f'{n} with {kind}' for kind, n in sorted(counts.items()))
  return f'{total} line{"s" * (total != 1)} redacted ({kinds})' if total else ''


def check_secrets(config):
  """Raise ValueError if a config holds a secret: it is written to files that others read."""
  for key, value in records.flatten(records.to_json(config)).items():
    is_path = key in PATHS
    kinds = ['password or key'] if value and is_secret_name(key) and not is_path else []
    for text in texts_of(value):
      kinds += [kind for *_, kind in find_secrets(text if is_path else f'{key}={text}', prose=True)]
    if kinds:
      raise ValueError(
        f'config.{key} holds a secret ({kinds[0]}), and a config is written to the run folder\n'
        'fix: take it out; give tokens by the environment (WANDB_API_KEY, HF_TOKEN)'
      )


def texts_of(value):
  """Yield the texts in a value of a config."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list | dict):
    for item in value.values() if isinstance(value, dict) else value:
      yield from texts_of(item)
