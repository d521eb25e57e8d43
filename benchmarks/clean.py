"""Measure scrubbing and filters: `python -m benchmarks.clean [--parts=scrub,near] [--gigabytes=0.1]`.

scrub  5,000 made-up records of ten kinds (faker) in sentences, and 2 MB of Gutenberg: recall by kind; what is
       found in the real text, where nothing should be, and precision after a record is planted in every
       tenth paragraph; MB of one second of one core
near   pieces of Gutenberg with near duplicates at a Jaccard similarity of 0.8 planted: the share found, and
       the share of other documents that are removed though none before them has a similarity of 0.7
contamination  items of ARC-Easy planted in pieces of Gutenberg: the share found
large  a synthetic corpus of so many gigabytes, a tenth of it near duplicates, through exact, near and
       passages: seconds, peak memory of the process, most bytes on disk

Writes results/clean/clean.json; other parts keep their numbers. Needs GPT_JAX_DATA, faker and rensa.
"""

import argparse
import json
import os
import random
import re
import string
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

from benchmarks import record
from gpt_jax.data import Source
from gpt_jax.data.clean import cleaning, patterns, scrub
from gpt_jax.data.mixture import DataConfig, unfiltered

RECORDS, REAL_BYTES = 500, 2_300_000  # of a kind; of real text
SENTENCES = (
  'Please write to {}, as soon as you can.',
  'My number is {} (the old one does not work).',
  'Contact: {}',
  'It was sent from {} on Monday.',
  'She said that "{}" would do, and left.',
  '{} is what he had written down.',
)
PLANTED_EVERY = 10  # paragraphs of real text, of which one has a record
KEY_PARTS = {
  'AKIA': (string.ascii_uppercase + string.digits, 16),
  'ghp_': (string.ascii_letters + string.digits, 36),
  'hf_': (string.ascii_letters, 34),
  'sk-': (string.ascii_letters + string.digits, 48),
  'xoxb-': (string.digits + string.ascii_lowercase, 40),
  'AIza': (string.ascii_letters + string.digits, 35),
}


def make_records(seed=0):
  """Return {kind: (row of scrub, values)} of made-up personal data."""
  import faker

  locales = {
    name: faker.Faker(name) for name in ('en_US', 'en_GB', 'de_DE', 'fr_FR', 'es_ES', 'it_IT', 'pt_BR')
  }
  faker.Faker.seed(seed)
  rng = random.Random(seed)
  us = locales['en_US']

  def phone():
    return locales[rng.choice(('en_US', 'en_GB', 'de_DE', 'fr_FR'))].phone_number()

  def url():
    login = f'{us.user_name()}:{us.password(special_chars=False)}'
    return f'{rng.choice(("https", "ftp", "postgres"))}://{login}@{us.domain_name()}/{us.uri_path()}'

  def key():
    prefix = rng.choice([*KEY_PARTS])
    letters, count = KEY_PARTS[prefix]
    return prefix + ''.join(rng.choice(letters) for _ in range(count))

  def national():
    name, make = rng.choice(
      (
        ('es_ES', lambda f: f.nif()),
        ('it_IT', lambda f: f.ssn()),
        ('pt_BR', lambda f: f.cpf()),
        ('fr_FR', lambda f: f.ssn()),
      )
    )
    return make(locales[name])

  kinds = {
    'email': ('email', lambda: locales[rng.choice([*locales])].email()),
    'phone': ('phone', phone),
    'card': ('card', us.credit_card_number),
    'IBAN': ('iban', lambda: locales[rng.choice(('en_GB', 'de_DE', 'fr_FR', 'es_ES', 'it_IT'))].iban()),
    'IPv4': ('ip', us.ipv4_public),
    'IPv6': ('ip', us.ipv6),
    'URL with credentials': ('url', url),
    'API key': ('key', key),
    'US social security number': ('id', us.ssn),
    'national id (ES, IT, BR, FR)': ('id', national),
  }
  return {kind: (row, [make() for _ in range(RECORDS)]) for kind, (row, make) in kinds.items()}


def gutenberg(limit):
  """Return the paragraphs of 14 books in turns, `limit` bytes of them."""
  path = Path(os.environ['GPT_JAX_DATA']) / 'gutenberg' / 'gutenberg.zip'
  with zipfile.ZipFile(path) as books:
    names = sorted(name for name in books.namelist() if name.endswith('.txt'))
    share = limit // len(names)
    texts = [books.read(name).decode('latin-1').replace('\r', '')[:share] for name in names]
  return [part for text in texts for part in re.split(r'\n\s*\n', text) if part.strip()]


def measure_scrub():
  """Return recall by kind, precision on real text with its false values, and speed."""
  rng, rows = random.Random(1), scrub.ALL
  records, recall, missed = make_records(), {}, {}
  for kind, (row, values) in records.items():
    texts = [(value, rng.choice(SENTENCES).format(value)) for value in values]
    found = [
      any(text[s.start : s.end] == value and s.row == row for s in scrub.find(text, rows))
      for value, text in texts
    ]
    replaced = [value not in scrub.Scrubber(rows).replace(text) for value, text in texts]
    recall[kind] = {'exact': sum(found) / len(found), 'replaced': sum(replaced) / len(replaced)}
    missed[kind] = [value for value, is_found in zip(values, found, strict=True) if not is_found][:10]
  paragraphs = gutenberg(REAL_BYTES)
  start = time.process_time()
  false = [(s.row, p[s.start : s.end]) for p in paragraphs for s in scrub.find(p, rows)]
  seconds = time.process_time() - start
  size = sum(len(p.encode()) for p in paragraphs)
  planted = right = wrong = 0
  values = [value for _, values in records.values() for value in values]
  for paragraph in paragraphs[::PLANTED_EVERY]:
    value = rng.choice(values)
    words = paragraph.split(' ')
    place = rng.randrange(len(words) + 1)
    text = ' '.join([*words[:place], value, *words[place:]])
    spans = [text[s.start : s.end] for s in scrub.find(text, rows)]
    planted += 1
    right += spans.count(value)
    wrong += len(spans) - spans.count(value)
  scrubber = time.process_time()
  for paragraph in paragraphs:
    scrub.Scrubber(rows).replace(paragraph)
  return {
    'records': RECORDS * len(records),
    'recall': recall,
    'recall_of_all': sum(r['exact'] for r in recall.values()) / len(recall),
    'missed': missed,
    'real_bytes': size,
    'found_in_real_text': [list(item) for item in false],
    'false_per_megabyte': len(false) / size * 1e6,
    'planted_in_real_text': {
      'planted': planted,
      'right': right,
      'false': wrong,
      'precision': right / (right + wrong),
    },
    'megabytes_per_second': size / 1e6 / seconds,
    'megabytes_per_second_with_replacing': size / 1e6 / (time.process_time() - scrubber),
    'megabytes_per_second_by_row': speed_by_row(paragraphs, size),
  }


def speed_by_row(paragraphs, size):
  """Return MB/s of each row of patterns alone."""
  speeds = {}
  for row in scrub.ALL:
    start = time.process_time()
    for paragraph in paragraphs:
      list(patterns.PATTERNS[row](paragraph))
    speeds[row] = size / 1e6 / (time.process_time() - start)
  return speeds


def groups(words):
  """Return the set of groups of 5 words."""
  return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(a, b):
  """Return the Jaccard similarity of two sets."""
  return len(a & b) / len(a | b)


def plant(words, rng, vocabulary, target):
  """Return words with single ones changed until the Jaccard similarity to the original is just `target`."""
  original, changed = groups(words), list(words)
  while True:
    place = rng.randrange(len(words))
    before, changed[place] = changed[place], rng.choice(vocabulary)
    if jaccard(original, groups(changed)) < target:
      changed[place] = before
      return changed


def measure_near(documents=3000, planted=600, target=0.8):
  """Return the shares of planted near duplicates found and of other documents removed."""
  rng = random.Random(0)
  words = re.findall(r'\w+', ' '.join(gutenberg(8_000_000)).lower())
  originals = [words[n * 200 : (n + 1) * 200] for n in range(min(documents, len(words) // 200))]
  vocabulary = sorted(set(words))
  chosen = rng.sample(range(len(originals)), planted)
  copies = [plant(originals[n], rng, vocabulary, target) for n in chosen]
  texts = [*map(' '.join, originals), *map(' '.join, copies)]
  examples = lambda skip=None: ((str(n), [cleaning.Piece('text', text)]) for n, text in enumerate(texts))
  start = time.process_time()
  verdicts = cleaning.judge(f'near={target}', examples)
  seconds = time.process_time() - start
  found = sum(bool(x) for x in verdicts.fate[len(originals) :])
  sets, false = [groups(text) for text in originals], []
  for number, is_removed in enumerate(verdicts.fate[: len(originals)]):
    if is_removed and max(jaccard(sets[number], other) for other in sets[:number]) < target - 0.1:
      false.append(number)
  similarities = sorted(jaccard(sets[n], groups(copy)) for n, copy in zip(chosen, copies, strict=True))
  return {
    'documents': len(originals),
    'planted': planted,
    'jaccard_of_planted': [similarities[0], similarities[len(similarities) // 2], similarities[-1]],
    'found': found / planted,
    'removed_of_others': sum(bool(x) for x in verdicts.fate[: len(originals)]) / len(originals),
    'false': len(false) / len(originals),
    'seconds': seconds,
  }


def measure_contamination(planted=500):
  """Return the share of planted items of ARC-Easy that are found, and other documents that are removed."""
  rng = random.Random(0)
  path = Path(os.environ['GPT_JAX_DATA']) / 'mc_evals' / 'arc_easy.jsonl'
  rule = cleaning.parse(f'decontaminate={path}')[0]
  questions = [json.loads(line)['query'] for line in path.read_text().splitlines()]
  long = [text for text in questions if len(text.split()) > 13]
  paragraphs = [part for part in gutenberg(8_000_000) if len(part.split()) > 20]
  start, false = time.process_time(), []
  for paragraph in paragraphs:
    false += [paragraph] if len(rule.items_of(paragraph)) else []
  seconds, found = time.process_time() - start, 0
  for text in rng.sample(long, planted):
    words = rng.choice(paragraphs).split(' ')
    place = rng.randrange(len(words))
    found += bool(len(rule.items_of(' '.join([*words[:place], text, *words[place:]]))))
  return {
    'items': len(rule.index.names),
    'too_short': len(rule.index.short),
    'planted': planted,
    'found': found / planted,
    'real_documents': len(paragraphs),
    'removed_of_real': false,
    'megabytes_per_second': sum(map(len, paragraphs)) / 1e6 / seconds,
  }


def write_corpus(path, gigabytes):
  """Write JSON lines of random words, a tenth of them near duplicates of an earlier one."""
  rng, size, kept = random.Random(0), 0, []
  vocabulary = [
    ''.join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 10))) for _ in range(50_000)
  ]
  count = near = 0
  with open(path, 'w') as file:
    while size < gigabytes * 1e9:
      if kept and rng.random() < 0.1:
        words, near = list(rng.choice(kept)), near + 1
        words[-15:] = rng.choices(vocabulary, k=15)
      else:
        words = rng.choices(vocabulary, k=400)
        if len(kept) < 20_000:
          kept.append(words)
      line = json.dumps({'text': ' '.join(words)}) + '\n'
      file.write(line)
      size, count = size + len(line), count + 1
  return {'bytes': size, 'documents': count, 'near_duplicates': near}


LARGE = """
import json, sys
from benchmarks import clean
print(json.dumps(clean.run_large(sys.argv[1], sys.argv[2])))
"""


def run_large(path, rules):
  """Apply rules to a corpus; return seconds, documents removed and the peak memory of this process."""
  before = peak_gigabytes()
  cfg = DataConfig({'x': Source('jsonl', path)}, valid_fraction=0.0)
  start, cpu = time.perf_counter(), time.process_time()
  verdicts = cleaning.judge(rules, unfiltered(cfg, 'x', 'train'))
  return {
    'seconds': time.perf_counter() - start,
    'cpu_seconds': time.process_time() - cpu,
    'peak_gigabytes': peak_gigabytes(),
    'gigabytes_before': before,
    'documents': len(verdicts.fate),
    'removed': cleaning.removed(verdicts.notes),
  }


def peak_gigabytes():
  """Return the most memory that this program has had; ru_maxrss would count its parent's."""
  [peak] = re.findall(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
  return int(peak) * 1024 / 1e9


def measure_large(gigabytes):
  """Return time, peak memory and most bytes on disk of each rule on a synthetic corpus."""
  with tempfile.TemporaryDirectory(prefix='gpt_jax_large_') as folder:
    path, temporary = Path(folder) / 'a.jsonl', Path(folder) / 'tmp'
    temporary.mkdir()
    numbers = write_corpus(path, gigabytes)
    for rules in ('exact', 'near=0.8', 'passages=50'):
      command = [sys.executable, '-c', LARGE, str(path), rules]
      with subprocess.Popen(
        command, env=os.environ | {'TMPDIR': str(temporary)}, stdout=subprocess.PIPE
      ) as process:
        most = [0]
        watch = threading.Thread(target=watch_folder, args=(process, temporary, most))
        watch.start()
        answer = process.stdout.read()
        watch.join()
      numbers[rules] = json.loads(answer) | {'most_gigabytes_on_disk': most[0] / 1e9}
    return numbers


def watch_folder(process, folder, most):
  """Keep the most bytes in the files of a folder while a process runs."""
  while process.poll() is None:
    total = 0
    for path in folder.rglob('*'):
      try:
        total += path.stat().st_size
      except FileNotFoundError:
        continue
    most[0] = max(most[0], total)
    time.sleep(0.5)


PARTS = {
  'scrub': lambda options: measure_scrub(),
  'near': lambda options: measure_near(),
  'contamination': lambda options: measure_contamination(),
  'large': lambda options: measure_large(options.gigabytes),
}


def main():
  """Measure the parts and write the result."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--parts', default=','.join(PARTS))
  parser.add_argument('--gigabytes', type=float, default=0.1)
  options = parser.parse_args()
  path = record.RESULTS / 'clean' / 'clean.json'
  numbers = json.loads(path.read_text())['numbers'] if path.exists() else {}
  for part in options.parts.split(','):
    numbers[part] = PARTS[part](options)
    print(part, json.dumps(numbers[part])[:2000], flush=True)
  claim = 'Scrubbing, near duplicates and memory of data/clean (one core, beside other work)'
  record.write_result('clean/clean', claim, numbers)


if __name__ == '__main__':
  main()
