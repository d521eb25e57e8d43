"""Help texts of config keys, taken from the comments beside their fields."""

import dataclasses
import inspect
import re

FIELD = re.compile(r'^  (\w+): [^#\n]*#\s*(.*)$', re.MULTILINE)


def comments(config_class):
  """Return {field: its comment} of a dataclass, from its source."""
  return dict(FIELD.findall(inspect.getsource(config_class)))


def format_keys(config_class):
  """Return one line for each key of a config: --config.section.key, its default and its comment."""
  lines, defaults = [], config_class()
  own = comments(config_class)
  for section in dataclasses.fields(config_class):
    if not dataclasses.is_dataclass(section.type):  # a key of its own
      lines.append(f'  --config.{section.name:25} {own[section.name]} (default: {section.default!r})')
      continue
    texts = comments(section.type)
    for field in dataclasses.fields(section.type):
      default = getattr(getattr(defaults, section.name), field.name)
      name = f'--config.{section.name}.{field.name}'
      lines.append(f'  {name:34} {texts.get(field.name, "")} (default: {default!r})')
  return '\n'.join(lines)
