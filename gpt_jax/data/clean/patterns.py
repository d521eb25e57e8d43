"""Patterns of personal data: rows of functions from a text to the spans that they find.

Numbers with check digits are checked, so that other numbers of their length stay: cards by Luhn (ISO/IEC
7812), IBAN by ISO 13616 and the length of their country, national ids by their own rules (national_ids.py).
Most documents have none: each row first looks for a sign that all its matches have. Keys are those of
runs/secrets.py.
"""

import functools
import ipaddress
import re
import sys
from collections.abc import Callable, Iterable

from gpt_jax.data.clean import national_ids
from gpt_jax.runs import secrets

Spans = Iterable[tuple[int, int]]

EMAIL = re.compile(
  r'(?<![\w.+-])[\w.+%-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w@])'
)
URL = re.compile(r'\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s<>"\'`]{3,2000}')
LOGIN = re.compile(r'://[^/\s@:]{1,200}:(?!\d{1,5}/)[^\s@]{1,300}@')  # user:password@, not host:80/@scope
URL_TOKEN = re.compile(secrets.FORMATS['token in a URL'])
KEYS = {kind: re.compile(rule) for kind, rule in secrets.FORMATS.items() if not kind.endswith('in a URL')}
SIGNS = {  # of which each text with a key of the kind has one: looking for them is 100 times as fast
  'private key': ('PRIVATE KEY',),
  'AWS key': ('A3T', 'AKIA', 'ASIA', 'ABIA', 'ACCA', 'AROA', 'AIDA'),
  'Google key': ('AIza', 'ya29.', 'GOCSPX-'),
  'GitHub token': ('ghp_', 'gho_', 'ghu_', 'ghs_', 'ghr_', 'github_pat_'),
  'GitLab token': ('pat-', 'rt-', 'dt-', 'tt-', 'ft-', 'oat-', 'bt-', 'agent-', 'fct-', 'mt-'),
  'Slack token': ('xox', 'xapp'),
  'webhook': ('hooks.slack.com', '/api/webhooks/'),
  'npm token': ('npm_',),
  'PyPI token': ('pypi-',),
  'Hugging Face token': ('hf_', 'api_org_'),
  'OpenAI or Anthropic key': ('sk-',),
  'Stripe key': ('_live_', '_test_', '_prod_', 'whsec_'),
  'SendGrid key': ('SG.',),
  'Twilio key': ('SK', 'AC'),
  'W&B key': ('wandb_v1_', 'local-'),
  'key': ('nvapi', 'gsk', 'xai', 'dop_v1', 'shpat', 'lin_api', 'tskey', 'AGE-SECRET-KEY'),
  'JSON web token': ('eyJ',),
  'authorization header': ('bearer', 'basic'),
}
SIGN_KINDS = [(sign, kind) for kind, signs in SIGNS.items() for sign in signs]
ANY_CASE = 'authorization header'  # its signs are looked for in lower case
IBAN = re.compile(r'\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}')
IBAN_LENGTHS = """
  AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20
  EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30
  KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23
  PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26
  UA29 VA22 VG24 XK20 YE30
"""  # country and characters
IBAN_LENGTH_OF = {code[:2]: int(code[2:]) for code in IBAN_LENGTHS.split()}
CARD = re.compile(r'(?<![\w.-])[1-6](?:[ -]?\d){11,18}(?![\w-]|\.\d)')
USUAL_CARD = re.compile(  # at the beginning of more digits, such as those of a date or a code
  r'(?:\d{15,16}|\d{4}([ -])(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{5}))(?= )'
)
ISSUERS = re.compile(  # Visa, Mastercard, Maestro, American Express, Diners Club, Discover, UnionPay, JCB
  r'4|5[0-8]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|3(?:0[0-5]|[689])|6|35|2131|1800'
)
IPV4 = re.compile(r'(?<![\w.])(?<!\d,)\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)')
OF_VERSION = re.compile(r'(?i)(?:\bv|version|release|section|chapter|\u00a7|==|>=|-)[ ]?$')  # before 1.2.3.4
IPV6 = re.compile(r'(?<![:.\w])(?:[0-9A-Fa-f]{1,4}:|::)(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![:\w])')
PHONE = re.compile(
  r'(?:(?<![\w.,:/$\u00a3\u20ac#=-])|(?<=[A-Za-z][:=])(?=\+))(?:'  # tel:+49
  # international: + or 00, the country, groups of digits
  r'(?P<world>(?:\+|00[ .-]?)[1-9]\d{0,2}[ ./-]?(?:\(\d{1,5}\)[ ./-]?)?\d{1,12}(?:[ ./-]\d{1,8}){0,6})'
  # North American: area and exchange never begin with 0 or 1
  r'|(?P<america>(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-]?)[2-9]\d\d[ .-]?\d{4})'
  # with a trunk 0: area, then groups
  r'|(?P<trunk>\(0\d{1,5}\) ?\d{2,8}(?:[ -]\d{2,6}){0,3}|0\d{1,5}(?:[ /-]\d{2,8}){1,4}|0[1-9]\d{7,10})'
  r')(?:(?: ?(?:x|ext\.?) ?)\d{1,6})?(?![\w]|[.,:/-]\d|[%$\u20ac])'
)
DIGITS = {'world': (8, 17), 'america': (10, 11), 'trunk': (9, 12)}  # least and most, without extension
EXTENSION = re.compile(r' ?(?:x|ext\.?) ?\d+$')


def digits_of(text: str) -> str:
  """Return the digits of a text."""
  return ''.join(filter(str.isdigit, text))


def luhn(digits: str) -> bool:
  """Return whether the last of some digits is their check digit."""
  doubled = (sum(divmod(2 * int(c), 10)) for c in digits[-2::-2])
  return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def emails(text: str) -> Spans:
  """Yield the spans of e-mail addresses."""
  return (match.span() for match in EMAIL.finditer(text)) if '@' in text else ()


def urls(text: str) -> Spans:
  """Yield the spans of URLs that hold a password or a token."""
  for match in URL.finditer(text) if '://' in text else ():
    if LOGIN.search(match[0]) or URL_TOKEN.search(match[0]):
      yield match.start(), match.start() + len(match[0].rstrip('.,;:!?)]}'))


def keys(text: str) -> Spans:
  """Yield the spans of API keys, tokens and private keys of known formats."""
  lower, kinds = text.lower(), []
  for sign, kind in SIGN_KINDS:
    if sign in (lower if kind == ANY_CASE else text):
      kinds.append(kind)
  for kind in dict.fromkeys(kinds):
    yield from (match.span() for match in KEYS[kind].finditer(text))


def ibans(text: str, start: int = 0, end: int = sys.maxsize) -> Spans:
  """Yield the spans of IBANs whose length and check digits are right."""
  for match in IBAN.finditer(text, start, end):
    stop, left = match.start(), IBAN_LENGTH_OF.get(match[0][:2], 0)
    while left and stop < match.end():
      left -= text[stop] != ' '
      stop += 1
    code = text[match.start() : stop].replace(' ', '')
    if not left and len(code) > 14 and not text[stop : stop + 1].isalnum():
      number = ''.join(str(int(c, 36)) for c in code[4:] + code[:4])
      if int(number) % 97 == 1:
        yield match.start(), stop


def cards(text: str, start: int = 0, end: int = sys.maxsize) -> Spans:
  """Yield the spans of payment card numbers: 12 to 19 digits of a known issuer, right by Luhn."""
  for match in CARD.finditer(text, start, end):
    for form in (match, USUAL_CARD.match(text, *match.span())):
      digits = digits_of(form[0]) if form else ''
      if ISSUERS.match(digits) and len(set(digits)) > 1 and luhn(digits):
        yield form.span()
        break


def addresses(text: str, start: int = 0, end: int = sys.maxsize) -> Spans:
  """Yield the spans of IP addresses, without loopback, unspecified, link-local ones and versions."""
  for rule in (IPV4, IPV6):
    for match in rule.finditer(text, start, end):
      is_named = rule is IPV6 and sum(map(bool, match[0].split(':'))) < 3  # a::b of a program
      try:
        ip = ipaddress.ip_address(match[0])
      except ValueError:
        continue
      is_local = ip.is_loopback or ip.is_unspecified or ip.is_link_local
      before = text[max(0, match.start() - 9) : match.start()]
      if not (is_local or is_named or (rule is IPV4 and OF_VERSION.search(before))):
        yield match.span()


def phones(text: str, start: int = 0, end: int = sys.maxsize) -> Spans:
  """Yield the spans of phone numbers: international, North American, or with a trunk prefix 0."""
  for match in PHONE.finditer(text, start, end):
    least, most = DIGITS[match.lastgroup]
    if least <= len(digits_of(EXTENSION.sub('', match[0]))) <= most:
      yield match.span()


@functools.cache
def _name_finder():
  from presidio_analyzer import AnalyzerEngine

  return AnalyzerEngine()


def names(text: str) -> Spans:
  """Yield the spans of names of people in English text, by Presidio."""
  results = _name_finder().analyze(text, entities=['PERSON'], language='en')
  return ((result.start, result.end) for result in results)


# Rows all of whose values have a digit, and no more than REACH characters without one; they search `regions`.
WITH_DIGIT, REACH = ('iban', 'card', 'id', 'ip', 'phone'), 40
NEAR_DIGITS = re.compile(rf'[0-9](?:[^0-9]{{0,{2 * REACH}}}[0-9])*')


def regions(text: str) -> list[tuple[int, int]]:
  """Return the parts of a text that are at most REACH characters from a digit: few, in most texts."""
  spans = (match.span() for match in NEAR_DIGITS.finditer(text))
  return [(max(0, start - REACH), end + REACH) for start, end in spans]


# name: function. Of overlapping spans that of the first row counts.
PATTERNS: dict[str, Callable[..., Spans]] = {
  'url': urls,
  'email': emails,
  'key': keys,
  'iban': ibans,
  'card': cards,
  'id': national_ids.find,
  'ip': addresses,
  'phone': phones,
  'names': names,
}
