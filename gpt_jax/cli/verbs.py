"""The verbs of the command line: their flags, help texts (the docstrings) and exit codes.

What a verb needs is imported when it runs: `--help` and errors in flags need no jax.
"""

import collections
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from gpt_jax.cli import args
from gpt_jax.cli.chat import chat, chat_flags
from gpt_jax.cli.data import data, data_flags
from gpt_jax.cli.evaluate import evaluate, evaluate_flags
from gpt_jax.cli.flags import (
  DEFINE,
  define_distributed,
  define_sampling,
  define_workdir,
  require,
  sampling_overrides,
)
from gpt_jax.cli.job import join
from gpt_jax.cli.lab import lab, lab_flags
from gpt_jax.cli.serve import serve, serve_flags
from gpt_jax.cluster.signals import PREEMPTED
from gpt_jax.cluster.watchdog import process_watchdog
from gpt_jax.runs.loggers import say

FLAGS = flags.FLAGS
BAD_ARGUMENTS, ERROR = 2, 1  # exit codes, beside PREEMPTED


class Verb(NamedTuple):
  """One verb of the command line."""

  run: Callable  # argv -> exit code; its docstring is the help text
  define_flags: Callable


# --------------------------------------------------------------------------------- train and sample


def train_flags():
  """Flags of `train`; args.load_experiment reads --config and its overrides."""
  flags.DEFINE_string('workdir', '', 'run folder; default: runs/NAME-DATE-TIME')
  define_distributed()


def train(argv):
  """Train an experiment, or resume the run in --workdir.

  --config=FILE[:args]   experiment file; default: the config of the run in --workdir, else the demo
  --config.KEY=VALUE     override a key of the experiment, such as --config.optim.lr=3e-4

  --config.train.branch_from=RUN[@STEP] continues another run in a new --workdir, by default with its config.

  A run keeps its config when it resumes, except for keys that its result does not depend on and for
  train.steps while the learning rates so far are the same (constant, or wsd before it decays). To profile a
  run, stop it and resume it with --config.train.profile='(100, 110)': first and last step.
  """
  from gpt_jax import config
  from gpt_jax.cluster import bootstrap
  from gpt_jax.runs import startup_timer
  from gpt_jax.train import train as train_run

  name = Path(args.flag_value(argv, 'config', args.DEMO).partition('.py')[0]).stem
  startup_timer.mark_phase('import')
  cfg = join('train', lambda: config.build(config.Config, FLAGS.config), agree=True, name=name)
  startup_timer.mark_phase('join')
  workdir = FLAGS.workdir or f'runs/{name}-{time.strftime("%Y%m%d-%H%M%S", bootstrap.local_time())}'
  process_watchdog().start_hang_timer(cfg.train.hang_seconds, workdir)
  result = train_run(cfg, workdir, process_watchdog().should_stop)
  return PREEMPTED if result is None else 0


def sample_flags():
  """Flags of `sample`."""
  from gpt_jax.tokenizers.grammar import END_MARKERS

  define_workdir()
  define_distributed()
  flags.DEFINE_string('prompt', '', 'text to continue, or to turn into an image or a sound')
  flags.DEFINE_multi_string('image', [], 'image file of the prompt; may be repeated')
  flags.DEFINE_multi_string('audio', [], 'sound of the prompt, or .npy of codes; may be repeated')
  flags.DEFINE_multi_string('vectors', [], '.npy file of vectors of the prompt; may be repeated')
  flags.DEFINE_string('source', '', 'source of data.mixture whose template to use, where several fit')
  flags.DEFINE_multi_string('stop', [], 'end a text before this string; may be repeated')
  flags.DEFINE_enum('to', 'text', [*END_MARKERS, 'codes'], 'what to generate; any: text and media')
  flags.DEFINE_bool('stream', True, 'print a single text while it is generated')
  flags.DEFINE_bool('log_probs', False, 'print the mean log-probability per token of each sample')
  flags.DEFINE_string(
    'out',
    '',
    'text: file to append one JSON object per line to; else a .png, .wav, .flac or .npy file or a folder; '
    'default: WORKDIR/samples',
  )
  define_sampling()


def sample(argv):
  """Continue a prompt with a trained model, or generate text, images or sounds from it."""
  from gpt_jax.cli import experiment_file
  from gpt_jax.cluster.bootstrap import is_primary, print_once
  from gpt_jax.evaluation import trained
  from gpt_jax.runs import run_folder
  from gpt_jax.sampling import completions, decoding_layout, output_files, prompts, validate

  join('sample', lambda: run_folder.read_config(FLAGS.workdir))
  run, to = trained.load(FLAGS.workdir), 'audio' if FLAGS.to == 'codes' else FLAGS.to
  prompts.check_output(run.tokenizers, FLAGS.to)
  stop = [experiment_file.unescape('--stop', text) for text in FLAGS.stop]
  overrides = sampling_overrides()
  cfg, notes = validate.override(run.cfg.sample, **overrides), collections.Counter()
  prompt = prompts.build_prompt(
    run, FLAGS.prompt, FLAGS.image, FLAGS.audio, to, cfg.begin, FLAGS.source, notes, FLAGS.vectors
  )
  for note, count in notes.items():
    print_once(f'{count} {note}')
  cfg = prompts.resolve_max_new_tokens(run, [prompt], cfg, to, 'max_new_tokens' in overrides)
  run = run._replace(model=decoding_layout.prepare_model(run.model, donate=True))
  if to != 'text':
    return sample_media(run, prompt, cfg, to)
  if FLAGS.out and is_primary():
    output_files.prepare_text_file(FLAGS.out)  # fails before sampling, not after it
  prefix = FLAGS.prompt if prompts.continues_text(run, prompt) else ''
  is_plain = cfg.num_samples == 1 and not (cfg.beams or cfg.judge or FLAGS.out or FLAGS.log_probs)
  if FLAGS.stream and is_plain:
    pieces = completions.stream_text(run.model, run.tokenizers, prompt, cfg, stop)
    for piece in itertools.chain([prefix + next(pieces)], pieces, ['\n']):
      print_once(piece, end='', flush=True)
    return 0
  [group] = run.complete([prompt], cfg, 'text', stop)
  for i, (text, scores) in enumerate(group if is_primary() else ()):
    say(output_files.format_sample(i, len(group), FLAGS.log_probs, scores, cfg, prefix + text))
    if FLAGS.out:
      media = {name: FLAGS[name].value for name in ('image', 'audio', 'vectors') if FLAGS[name].value}
      output_files.append_sample(FLAGS.out, FLAGS.prompt, media, text, scores, cfg.seed)
  return 0


def sample_media(run, prompt, cfg, to):
  """Generate images and sounds, write them, and print their paths."""
  from gpt_jax.cluster.bootstrap import is_primary
  from gpt_jax.data import templates
  from gpt_jax.sampling import output_files

  if FLAGS.stop:
    raise ValueError(f'--stop ends texts and has no use with --to={FLAGS.to}\nfix: leave it out')
  files = output_files.OutputFiles(FLAGS.out, run.workdir / 'samples', FLAGS.to, cfg.num_samples)
  [group] = run.complete([prompt], cfg, to)
  rate = getattr(run.tokenizers.audio, 'sample_rate', 0)
  for i, (ids, scores) in enumerate(group if is_primary() else ()):
    pieces = (
      [templates.Piece('text', cfg.refusal)] if ids is None else run.pieces(prompt, ids, FLAGS.to == 'codes')
    )
    lines = [p.value if p.kind == 'text' else str(files.write(p, rate)) for p in pieces]
    say(output_files.format_sample(i, len(group), FLAGS.log_probs, scores, cfg, '\n'.join(lines)))
  return 0


# ------------------------------------------------------------------------------- import and export


def import_flags():
  """Flags of `import`."""
  flags.DEFINE_string('source', '', 'folder with config.json and safetensors, FILE.gguf, or a hub id')
  flags.DEFINE_string(
    'base', '', 'run folder of the base model, where --source is an adapter in the format of PEFT'
  )
  define_workdir()
  define_distributed()


def import_(argv):
  """Make a run folder of a Hugging Face model, or of an adapter; docs/reference.md lists the families."""
  from gpt_jax.interop import huggingface, peft_files

  source = require('source')
  join('import', dict)
  if FLAGS.base:
    peft_files.import_adapter(source, FLAGS.base, FLAGS.workdir)
  else:
    huggingface.import_run(source, FLAGS.workdir)
  return 0


def export_flags():
  """Flags of `export`."""
  define_workdir()
  flags.DEFINE_string('out', '', 'folder for config.json, model.safetensors and tokenizer files')
  flags.DEFINE_bool(
    'adapter', False, 'write the adapters alone, in the format of PEFT; default: merged weights'
  )


def export(argv):
  """Write a trained model as Hugging Face files."""
  from gpt_jax.interop import huggingface, peft_files

  write = peft_files.export_adapter if FLAGS.adapter else huggingface.export_run
  write(FLAGS.workdir, require('out'))
  return 0


# ------------------------------------------------------------------------------- ablate and report


def ablate_flags():
  """Flags of `ablate`."""
  flags.DEFINE_string('config', '', 'study file, such as experiments/ablations/norms.py[:args]')
  flags.DEFINE_string('workdir', '', 'study folder; default: runs/ablate-NAME')
  flags.DEFINE_integer('seeds', 0, 'runs per arm; 0: as the study says', lower_bound=0)
  flags.DEFINE_integer('workers', 0, 'concurrent training processes; 0: measure the fastest', lower_bound=0)
  flags.DEFINE_string('share', '', 'I/N: train only the I-th, from 0, of N shares of the runs')
  flags.DEFINE_bool('dry_run', False, 'print the plan and how the arms differ, train nothing')
  flags.DEFINE_bool('register', False, 'fix the protocol and print its hash, train nothing')


def ablate(argv):
  """Compare the arms of a study: plan, prove that they differ, train, judge, report."""
  # The training processes get the accelerator's memory, not this one.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from gpt_jax.cli import studies

  process_watchdog().wait_for_save()
  failures = studies.ablate(
    require('config'),
    FLAGS.workdir,
    seeds=FLAGS.seeds,
    share=FLAGS.share,
    dry_run=FLAGS.dry_run,
    register=FLAGS.register,
    workers=FLAGS.workers,
    should_stop=lambda: process_watchdog().stop_requested,
  )
  return PREEMPTED if failures is None else ERROR if failures else 0


def report_flags():
  """Flags of `report`."""
  define_workdir()
  flags.DEFINE_string('where', '', 'runs to list, in SQL: "optim.lr > 1e-3 and model.positions = \'rope\'"')
  flags.DEFINE_string('against', '', 'run folder: find where the activations of the two runs diverge')
  flags.DEFINE_string('texts', '', 'with --against: FILE.jsonl or text, whose bytes both models score')
  flags.DEFINE_bool('why', False, 'of a study: also compare losses, activations and gradients of the arms')
  flags.DEFINE_bool(
    'rescore', False, 'of a study: first evaluate its finished runs again, by the present code'
  )
  flags.DEFINE_bool('card', False, 'of a run: also write its data and model card, CARD.md')
  flags.DEFINE_bool('paper', False, 'of a study: also write figures, tables and texts for a paper')
  flags.DEFINE_list(
    'columns', [], 'columns of the table: keys of config or result, or scores TASK/SOURCE/METRIC'
  )


def report(argv):
  """Rewrite the report of a study or run, list runs as a table, or compare two runs."""
  from gpt_jax.ablation.execute import rescore, runner
  from gpt_jax.cli import studies
  from gpt_jax.reports import compare, paper
  from gpt_jax.reports import run_report as page

  workdir, wants_table = Path(FLAGS.workdir).expanduser(), FLAGS.where or FLAGS.columns
  if FLAGS.texts and not FLAGS.against:
    raise ValueError(f'--texts={FLAGS.texts} has no effect without --against\nfix: add --against=RUN')
  of_studies = [f'--{name}' for name in ('paper', 'why', 'rescore') if FLAGS[name].value]
  if of_studies and not (workdir / 'study.json').exists():
    raise ValueError(f'workdir={workdir} is not a study, which {of_studies[0]} needs\nfix: give one')
  if of_studies and (wants_table or FLAGS.against):
    raise ValueError(f'{of_studies[0]} has no effect on tables and --against\nfix: leave one of them out')
  if FLAGS.card and (wants_table or FLAGS.against or (workdir / 'study.json').exists()):
    raise ValueError('--card is of one run\nfix: give the folder of a run, without --against and tables')
  if FLAGS.against:
    if wants_table:
      raise ValueError('--against compares two runs\nfix: leave out --where and --columns')
    if FLAGS.texts:
      lines = compare.texts_apart(FLAGS.workdir, FLAGS.against, FLAGS.texts)
      say('\n'.join([*lines, page.rewrite_report(workdir)]))
    else:
      say('\n'.join(compare.runs_apart(FLAGS.workdir, FLAGS.against)))
  elif not wants_table and (workdir / 'study.json').exists():
    if FLAGS.rescore:
      rescore.rescore(workdir)
    if FLAGS.why:
      say('\n'.join(compare.arms_apart(workdir)))
    runner.judge(workdir)
    if FLAGS.paper:
      say('\n'.join(map(str, paper.write_paper(workdir))))
  elif FLAGS.card or (not wants_table and (workdir / 'config.json').exists()):
    if FLAGS.card:
      from gpt_jax.interop import model_card

      say(f'card: {model_card.write_run_card(workdir)}')
    say(page.rewrite_report(workdir))
  else:
    say('\n'.join(studies.format_runs(workdir, FLAGS.where, FLAGS.columns)))
  return 0


# -------------------------------------------------------------------------- render, plan and doctor


def render_flags():
  """Flags of `render`: one for each field of render.JobSpec with a help text."""
  from gpt_jax.cluster import render as job_files

  flags.DEFINE_enum('to', None, list(job_files.TARGETS), 'scheduler')
  flags.DEFINE_string('out', '', 'file to write; default: print it')
  for field in dataclasses.fields(job_files.JobSpec):
    if field.name in job_files.HELP:
      default = '' if field.default is dataclasses.MISSING else field.default
      DEFINE[field.type](field.name, default, job_files.HELP[field.name])


def render(argv):
  """Print the job file that trains an experiment on a cluster, or a study with --shares."""
  from gpt_jax import config
  from gpt_jax.ablation import design
  from gpt_jax.cluster import render as job_files
  from gpt_jax.sampling import output_files

  spec = args.flag_value(argv, 'config', args.DEMO)
  if FLAGS.shares:
    design.load_study(require('config'))
  else:
    config.build(config.Config, FLAGS.config)
  fields = {name: FLAGS[name].value for name in job_files.HELP}
  job = job_files.job_spec(spec, args.config_overrides(argv), **fields)
  output_files.write_text(FLAGS.out, job_files.render(require('to'), job))
  return 0


def plan_flags():
  """Flags of `plan`; args.load_experiment reads --config and its overrides."""
  from gpt_jax.plan import topologies

  os.environ.update(topologies.ENVIRONMENT)  # before jax is imported
  flags.DEFINE_string('topology', '', f'hardware to compile for, such as {", ".join(topologies.EXAMPLES)}')
  flags.DEFINE_float('price', 0.0, 'dollars per device-hour; 0: print no cost', lower_bound=0.0)
  flags.DEFINE_bool('search', False, 'try micro-batches, remat policies and meshes')
  flags.DEFINE_bool('decode', True, 'compile the decode step, too')
  flags.DEFINE_bool('table', False, 'print the sharding and bytes of each parameter')
  flags.DEFINE_bool('json', False, 'print one JSON object')


def plan(argv):
  """Compile a run for hardware that is not here: does it fit, and how fast can it be?

  Exit code 2 if it does not fit.
  """
  from gpt_jax import config
  from gpt_jax.plan import format, search
  from gpt_jax.plan import plan as planning

  target = planning.Target.of(require('topology'))
  cfg = config.build(config.Config, FLAGS.config)
  if any(arg.startswith('--config.mesh.') for arg in argv):  # also those equal to the default
    cfg = planning.with_chosen_mesh(cfg, target)
  if FLAGS.search:
    result = search.best_plan(cfg, target, FLAGS.price, (lambda _: None) if FLAGS.json else say)
  else:
    result = planning.plan(cfg, target, FLAGS.price, FLAGS.decode)
  if not FLAGS.table:
    result.pop('table', None)
  say(json.dumps(result, indent=1) if FLAGS.json else '\n'.join(format.lines(result)))
  return 0 if result['fits'] else BAD_ARGUMENTS


def doctor(argv):
  """Print versions and hardware of this machine, and whether a training step runs."""
  from gpt_jax.cli import doctor as checks

  return checks.run_checks()


VERBS = {
  'train': Verb(train, train_flags),
  'sample': Verb(sample, sample_flags),
  'chat': Verb(chat, chat_flags),
  'evaluate': Verb(evaluate, evaluate_flags),
  'data': Verb(data, data_flags),
  'import': Verb(import_, import_flags),
  'export': Verb(export, export_flags),
  'ablate': Verb(ablate, ablate_flags),
  'report': Verb(report, report_flags),
  'lab': Verb(lab, lab_flags),
  'render': Verb(render, render_flags),
  'plan': Verb(plan, plan_flags),
  'serve': Verb(serve, serve_flags),
  'doctor': Verb(doctor, lambda: None),
}
