"""`launch.py data`: filter and scrub sources without training, and look at what that does."""

import dataclasses
import re
from pathlib import Path

from absl import flags

from gpt_jax.cli import experiment_file
from gpt_jax.runs import records, text_table
from gpt_jax.runs.loggers import say

FLAGS = flags.FLAGS
KINDS = {
  '.jsonl': 'jsonl',
  '.json': 'jsonl',
  '.csv': 'csv',
  '.tsv': 'csv',
  '.parquet': 'parquet',
}  # else text
OF_SOURCE = ('scrub', 'clean', 'template', 'separator', 'bad_records')  # flags that are fields of --source
NAME = 'source'  # of --source in data.mixture


def data_flags():
  """Flags of `data`; args.load_experiment reads --config and its overrides."""
  flags.DEFINE_string('source', '', 'file, glob or folder to read, in the place of the sources of --config')
  flags.DEFINE_string('kind', '', 'kind of --source; default: by its suffix, else text')
  flags.DEFINE_string('scrub', '', 'personal data of --source to replace, such as all')
  flags.DEFINE_string('clean', '', 'rules for --source, such as exact,near=0.8,gopher')
  flags.DEFINE_string('template', '{text}', 'documents of --source')
  flags.DEFINE_string('separator', '', 'string between the documents of a text')
  flags.DEFINE_integer('bad_records', 0, 'unreadable records of --source to skip', lower_bound=0)
  flags.DEFINE_integer('samples', 3, 'documents to show of each rule', lower_bound=0)
  flags.DEFINE_bool('show', False, 'show personal data as they are, and what a score removed')
  flags.DEFINE_string('out', '', 'folder for data.html and data.json; default: none')


def data(argv):
  """Filter and scrub sources without training: counts by rule, sizes, and samples before and after.

  Give --source=FILE with --scrub and --clean, or --config=FILE with its overrides, such as
  --config.data.mixture.text.clean=exact. Personal data are masked, unless --show asks for them.
  """
  from gpt_jax.data import DataConfig, Source
  from gpt_jax.data.clean import survey
  from gpt_jax.data.mixture import unfiltered

  records.check_writable(f'--out={FLAGS.out}', FLAGS.out)
  cfg = _config(argv, DataConfig, Source)
  surveys = []
  for name, source in sorted(cfg.mixture.items()):
    label = Path(FLAGS.source).name if FLAGS.source else name
    try:
      examples = unfiltered(cfg, name, 'train')
      surveys.append(survey.survey(label, source, examples, FLAGS.samples, FLAGS.show))
    except ValueError as error:
      if not FLAGS.source:
        raise
      raise _in_flags(error) from error
    say('\n'.join(format_survey(surveys[-1])))
  if FLAGS.out:
    from gpt_jax.reports import data_page  # matplotlib takes a second to import

    folder = Path(FLAGS.out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(item) for item in surveys]
    records.write_atomically(folder / 'data.html', data_page.render(rows))
    for row in rows:
      row.pop('sizes')
    records.write_json(folder / 'data.json', {'sources': rows})
    say(f'report: {folder / "data.html"}')
  return 0


def _in_flags(error):
  """Return the error of --source in its own words: flags in the place of keys of the config."""
  key = f'data.mixture.{NAME}'
  text = str(error).replace(f'{key}: ', '').replace(f'{key}.', '--').replace(key, f'--source={FLAGS.source}')
  return ValueError(re.sub(r'\bpath=', '--source=', text, count=1))


def _config(argv, data_config, source_class):
  """Return the DataConfig of --source, or of --config; ValueError for both or neither."""
  fields = {name: FLAGS[name].value for name in OF_SOURCE if FLAGS[name].present}
  if not FLAGS.source:
    if not any(arg.startswith('--config') for arg in argv):
      raise ValueError('data has nothing to read\nfix: add --source=FILE, or --config=FILE')
    if names := [name for name in (*fields, 'kind') if FLAGS[name].present]:
      raise ValueError(
        f'--{names[0]} needs --source\nfix: add it, or write --config.data.mixture.NAME.{names[0]}=...'
      )
    from gpt_jax import config

    return config.build(config.Config, FLAGS.config).data
  if FLAGS.config:
    raise ValueError(f'--source={FLAGS.source} and --config={FLAGS.config} both name data\nfix: give one')
  kind = FLAGS.kind or next((k for suffix, k in KINDS.items() if suffix in Path(FLAGS.source).name), 'text')
  if 'separator' in fields:
    fields['separator'] = experiment_file.unescape('--separator', fields['separator'])
  source = source_class(kind, FLAGS.source, **fields)
  return data_config({NAME: source}, packing='first_fit')


def format_survey(survey):
  """Return the lines of one source: a table of what was removed and replaced, and samples."""
  share = lambda n: f'{n / max(1, survey.documents):.1%}'
  rows = [('documents', survey.documents, ''), *((f'- {k}', n, share(n)) for k, n in survey.removed.items())]
  rows += [('left', survey.left, share(survey.left))]
  rows += [('bytes', survey.bytes, ''), ('bytes left', survey.bytes_left, '')]
  rows += [(f'{row} replaced', n, '') for row, n in survey.replaced.items()]
  rows += [(note, n, '') for note, n in survey.changed.items()]
  lines = [f'{survey.name}:', *text_table.format_table([(a, f'{n:,}', s) for a, n, s in rows], ('', '', ''))]
  for rule, where, before, after in survey.samples:
    lines += [f'[{rule}] {where}', f'  {_line(before)}', *([f'  {_line(after)}'] if after else [])]
  return [line for line in lines if line.strip()]


def _line(text):
  return ' '.join(text.split())
