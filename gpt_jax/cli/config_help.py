"""Help texts of config keys, taken from the comments beside their fields."""

import dataclasses
import inspect
import re

FIELD = re.compile(r'^  (\w+): [^#\n]*#\s*(.*)$', re.MULTILINE)


def comments(config_class):
  """Return {field: its comment} of a dataclass, from its source."""
  return dict(FIELD.findall(inspect.getsource(config_class)))


def keys(config_class):
  """Yield (key, default, comment) of each key of a config."""
  defaults, own = config_class(), comments(config_class)
  for section in dataclasses.fields(config_class):
    if not dataclasses.is_dataclass(section.type):  # a key of its own
      yield section.name, section.default, own[section.name]
      continue
    texts = comments(section.type)
    for field in dataclasses.fields(section.type):
      default = getattr(getattr(defaults, section.name), field.name)
      yield f'{section.name}.{field.name}', default, texts.get(field.name, '')


def format_keys(config_class):
  """Return one line for each key of a config: --config.section.key, its comment and its default."""
  rows = keys(config_class)
  return '\n'.join(f'  {f"--config.{key}":34} {text} (default: {default!r})' for key, default, text in rows)


def format_tables(config_class):
  """Return the keys of a config in Markdown, a table for each section."""
  cell, lines, before = lambda text: text.replace('|', '\\|'), [], None
  for key, default, text in keys(config_class):
    section, _, name = key.rpartition('.')
    if section != before:
      lines += ['', f'## {section or "Beside the sections"}', '', '| key | default | |', '|---|---|---|']
    lines.append(f'| `{name}` | `{cell(repr(default))}` | {cell(text)} |')
    before = section
  return '\n'.join(lines)
