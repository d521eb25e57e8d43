"""The README's table of results: `python -m benchmarks.table` makes it from results/*.json.

A row shows the claim, the number that supports it, the minutes, the hardware and the command.
"""

import datetime
import json
import pathlib

from benchmarks.record import RESULTS

README = pathlib.Path(__file__).parents[1] / 'README.md'
BEGIN, END = '<!-- results -->', '<!-- end of results -->'


def number(name, result):
  """The headline of a result file, as text."""
  numbers = result['numbers']
  if 'shown' in result:
    return result['shown']
  text = f'{numbers["valid_loss"]:.3f} nats/token'
  if 'valid_bits_per_byte' in numbers:
    text += f', {numbers["valid_bits_per_byte"]:.3f} bits/byte'
  return text


def minutes(result):
  """From start to end, evaluation, sampling and report included; installation apart."""
  ends = [datetime.datetime.fromisoformat(result[key]) for key in ('started', 'finished')]
  return (ends[1] - ends[0]).total_seconds() / 60


def table():
  """The Markdown table."""
  lines = ['| what | result | minutes | hardware | command |', '|---|---|---|---|---|']
  for path in sorted(RESULTS.glob('*.json')):
    result = json.loads(path.read_text())
    file = f'[{result["claim"]}](benchmarks/results/{path.name})'
    command = result['command'].removeprefix('python ')
    lines.append(
      f'| {file} | {number(path.stem, result)} | {minutes(result):.1f} | {result["hardware"]} '
      f'| `{command}` |'
    )
  return '\n'.join(lines)


def rewritten(text):
  """README's text with the table between its marks renewed."""
  head, rest = text.split(BEGIN)
  _, tail = rest.split(END)
  return f'{head}{BEGIN}\n{table()}\n{END}{tail}'


if __name__ == '__main__':
  README.write_text(rewritten(README.read_text()))
