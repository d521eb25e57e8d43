"""Secrets: keep tokens and passwords out of every file that a run writes."""

import json
import re

from gpt_jax.runs import records

SECRET_NAME = (  # the last part of a flag's name; eos_token and max_new_tokens do not match
  r'(?:(?:[\w-]*(?:api|auth|access|bearer|hf|hub|wandb|private)[_-]?)?token|[\w-]*secret[\w-]*'
  r'|[\w-]*(?:api|access|private|wandb)[_-]?key|[\w-]*passw(?:or)?d|[\w-]*credentials?)'
)
MAY_BE_SECRET = (  # matches every line that `redact` changes, in linear time
  r'(?i)token|secret|key|passw|credential|://|hf_|sk-|gh[pousr]_|github_pat_|akia'
)
SECRETS = (
  (rf'(?i)(--(?:[\w-]+\.)*{SECRET_NAME}(?:=|[\s\0]+(?!-)))[^\0\n]*', r'\1***'),
  (r'(\w+://)[^/\s@]+@', r'\1***@'),
  (r'\b(hf_|sk-|gh[pousr]_|github_pat_|AKIA)[\w-]{8,}', r'\1***'),
)


def redact(text):
  """Return the text with the values of secrets as ***: --token=..., user:password@, hf_..., sk-..."""
  for pattern, replacement in SECRETS:
    text = re.sub(pattern, replacement, text)
  return text


def redact_lines(text):
  """Redact a long text line by line; a long line that may hold a secret is dropped whole.

  The time of `redact` grows with the cube of a line's length.
  """
  safe = lambda line: redact(line) if len(line) < 300 else f'{line[0]}***\n'
  lines = text.splitlines(keepends=True)
  return ''.join(safe(line) if re.search(MAY_BE_SECRET, line) else line for line in lines)


def check_secrets(config):
  """Raise ValueError if a config holds a secret: it is written to files that others read."""
  for key, value in records.flatten(records.to_json(config)).items():
    text = json.dumps(value, ensure_ascii=False)
    has_secret_name = re.fullmatch(rf'(?i)(?:.*\.)?{SECRET_NAME}', key)
    if (has_secret_name and value) or redact(text) != text:
      raise ValueError(
        f'config.{key} holds a secret, and a config is written to the run folder\n'
        'fix: take it out; give tokens by the environment (WANDB_API_KEY, HF_TOKEN)'
      )
