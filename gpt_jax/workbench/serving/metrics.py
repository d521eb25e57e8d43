"""Counters and histograms in the text format of Prometheus.

Source: https://prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4.
"""

import bisect
import collections
import threading

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # seconds
HELP = {
  'requests_total': 'Requests by endpoint and status.',
  'prompt_tokens_total': 'Tokens of prompts.',
  'generated_tokens_total': 'Sampled tokens.',
  'aborted_total': 'Requests whose client left.',
  'first_token_seconds': 'From the request to its first piece of text.',
  'request_seconds': 'From the request to the end of the answer.',
  'running': 'Generations in progress.',
  'waiting': 'Generations that wait.',
  'cache_tokens': 'Tokens in the KV caches of texts.',
  'cache_room': 'Tokens that these caches have room for.',
}


class Metrics:
  """What a server counts; safe to use from several threads."""

  def __init__(self):
    self.lock = threading.Lock()
    self.counters = collections.Counter()  # {(name, labels): value}
    self.histograms = {}  # {name: [counts of BUCKETS and above, sum]}

  def count(self, name, value=1, **labels):
    """Add to the counter `name`_total."""
    with self.lock:
      self.counters[f'{name}_total', tuple(labels.items())] += value

  def observe(self, name, seconds):
    """Add a duration to a histogram."""
    with self.lock:
      counts, total = self.histograms.get(name, ([0] * (len(BUCKETS) + 1), 0.0))
      counts[bisect.bisect_left(BUCKETS, seconds)] += 1
      self.histograms[name] = counts, total + seconds

  def render(self, **gauges):
    """Return all of them as text; gauges: present values by name."""
    with self.lock:
      counters, histograms = dict(self.counters), {k: (list(v[0]), v[1]) for k, v in self.histograms.items()}
    lines, rows = [], collections.defaultdict(list)
    for (name, labels), value in sorted(counters.items()):
      rows[name].append((labels, value))
    for name, values in rows.items():
      lines += _head(name, 'counter') + [_line(name, labels, value) for labels, value in values]
    for name, value in gauges.items():
      lines += [*_head(name, 'gauge'), _line(name, (), value)]
    for name, (counts, total) in histograms.items():
      lines += _head(name, 'histogram')
      for n, bound in enumerate((*BUCKETS, '+Inf'), 1):
        lines.append(_line(f'{name}_bucket', (('le', bound),), sum(counts[:n])))
      lines += [_line(f'{name}_sum', (), total), _line(f'{name}_count', (), sum(counts))]
    return '\n'.join(lines) + '\n'


def _head(name, kind):
  return [f'# HELP gpt_jax_{name} {HELP[name]}', f'# TYPE gpt_jax_{name} {kind}']


def _line(name, labels, value):
  text = ','.join(f'{key}="{label}"' for key, label in labels)
  return f'gpt_jax_{name}{"{" + text + "}" if text else ""} {value:g}'
