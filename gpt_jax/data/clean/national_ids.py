"""National identity numbers by pattern and, where they have check digits, by these.

| row | number | check |
|---|---|---|
| US | Social Security number, with hyphens | ranges that are never issued |
| GB | National Insurance number | prefixes that are never issued |
| ES | DNI and NIE | letter modulo 23 |
| FR | NIR (INSEE) | key modulo 97 |
| IT | codice fiscale | letter modulo 26 |
| BR | CPF, with dots and hyphen | two digits modulo 11 |
| CN | resident identity number | digit modulo 11 (ISO 7064) |

Numbers that are only digits with a weak check (Dutch BSN, German tax id) are left out: of other numbers of
their length one in eleven passes.
"""

import re
import sys

SPANISH, CHINESE = 'TRWAGMYFPDXBNJZSQVHLCKE', '10X98765432'
ODD = (
  1,
  0,
  5,
  7,
  9,
  13,
  15,
  17,
  19,
  21,
  2,
  4,
  18,
  20,
  11,
  3,
  6,
  8,
  12,
  14,
  16,
  10,
  22,
  25,
  24,
  23,
)  # of A to Z


def _spanish(text: str) -> bool:
  number = text[:-1].replace('-', '').translate(str.maketrans('XYZ', '012'))
  return SPANISH[int(number) % 23] == text[-1]


def _french(text: str) -> bool:
  number = text[:-2].replace('2A', '19').replace('2B', '18')
  return 97 - int(number) % 97 == int(text[-2:])


def _italian(text: str) -> bool:
  place = lambda c: int(c) if c.isdigit() else ord(c) - 65
  total = sum(place(c) if n % 2 else ODD[place(c)] for n, c in enumerate(text[:15]))
  return total % 26 == ord(text[15]) - 65


def _brazilian(text: str) -> bool:
  digits = [int(c) for c in text if c.isdigit()]
  check = lambda count: sum(d * (count + 1 - n) for n, d in enumerate(digits[:count])) * 10 % 11 % 10
  return len(set(digits)) > 1 and [check(9), check(10)] == digits[9:]


def _chinese(text: str) -> bool:
  total = sum(int(c) << (17 - n) for n, c in enumerate(text[:17]))
  return CHINESE[total % 11] == text[17].upper()


FORMS = {  # name: (pattern, whether the digits and letters without spaces are right)
  'US': (r'(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}', None),
  'GB': (r'(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]', None),
  'ES': (r'(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z]', _spanish),
  'FR': (r'[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d', _french),
  'IT': (r'[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]', _italian),
  'BR': (r'\d{3}\.\d{3}\.\d{3}-\d\d', _brazilian),
  'CN': (r'[1-9]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]', _chinese),
}
PATTERN = re.compile(
  r'(?<![\w.-])(?:'
  + '|'.join(f'(?P<{name}>{form})' for name, (form, _) in FORMS.items())
  + r')(?![\w-]|\.\d)'
)


def find(text: str, start: int = 0, end: int = sys.maxsize):
  """Yield (start, end) of national identity numbers."""
  for match in PATTERN.finditer(text, start, end):
    check = FORMS[match.lastgroup][1]
    if check is None or check(match[0].replace(' ', '')):
      yield match.span()
