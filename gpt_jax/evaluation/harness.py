"""The tasks of the lm-eval library (EleutherAI's evaluation harness, Gao et al. 2021) on our models.

An extra: `pip install -e '.[harness]'`. Its tasks name data sets of the Hugging Face hub; where there is no
network, a folder of task files (YAML) over local data takes their place. Task files can contain Python code:
use only those that you trust.
"""

import difflib
import functools
import importlib.metadata
import logging
import os

from gpt_jax.data import Piece
from gpt_jax.evaluation import likelihood
from gpt_jax.evaluation.tasks import common
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, validate

log = logging.getLogger(__name__)
MAX_NEW_TOKENS = 256  # where a task sets no limit, as in lm-eval
BOOTSTRAPS = 1000  # draws for standard errors that have no formula
Z = 1.96  # standard errors of a 95 % interval


def run(subject, tasks, files='', shots=None, limit=0):
  """Run tasks of lm-eval by name -> result rows; the task is `harness`, the source is the task's name.

  files: folder of task files, '' for the library's own tasks alone. shots: examples in the prompt, None for
  the task's own number. limit: examples of a task, 0 = all.
  """
  manager = _task_manager(files)
  tasks = check_names(tasks, manager)
  try:
    loaded = manager.load(list(tasks))
  except (AttributeError, NameError, TypeError):  # of another version of lm-eval, not of the data
    raise
  except ImportError as error:
    raise ValueError(
      f'--harness={",".join(tasks)} needs a package: {error}\nfix: pip install {error.name or "it"}'
    ) from error
  except Exception as error:  # datasets, the network and parsers have errors of their own
    raise ValueError(
      f'--harness={",".join(tasks)} cannot read its data: {_first_line(error)}\n'
      'fix: name the folder of task files over data that are here with --harness_files'
    ) from error
  results = evaluate(adapter(subject), loaded, shots, limit)
  rows, splits = [], {}
  for name, samples in sorted(results['samples'].items()):
    splits[name] = 'test' if loaded['tasks'][name].has_test_docs() else 'valid'
    rows += _rows(subject, results, name, splits[name], samples)
  for name, values in sorted(results.get('groups', {}).items()):
    rows += _metric_rows(name, max(splits.values()), values, version=results['versions'].get(name))
  return rows


def evaluate(model, loaded, shots=None, limit=0):
  """Run loaded tasks on an lm_eval LM -> the results of lm-eval.

  As its simple_evaluate does, without its report on the machine, which takes half a minute.
  """
  from lm_eval import evaluator

  os.environ.setdefault('DISABLE_MULTIPROC', '1')  # its bootstrap would fork a process that has JAX's threads
  for name, task in loaded['tasks'].items():
    own = task.get_config('num_fewshot')
    if shots and own == 0:
      log.warning('--shots=%d has no effect on %s: it is a task without examples in the prompt', shots, name)
    elif shots is not None or own is None:
      task.set_config(key='num_fewshot', value=shots or 0)
    task.set_fewshot_seed(seed=common.FEWSHOT_SEED)
  return evaluator.evaluate(
    lm=model, task_dict=loaded, limit=limit or None, bootstrap_iters=BOOTSTRAPS, log_samples=True
  )


def _task_manager(files):
  """The TaskManager of lm-eval; ValueError where the library or the folder is missing."""
  try:
    from lm_eval.tasks import TaskManager
  except ImportError:
    raise ValueError("--harness needs lm-eval\nfix: pip install -e '.[harness]'") from None
  if files and not files.is_dir():
    raise ValueError(f'--harness_files={files} is not a folder\nfix: name a folder of task files (YAML)')
  return TaskManager(include_path=str(files) if files else None)


def check_names(names, manager):
  """Return the names without repeats; ValueError for one that is neither a task nor a group of tasks."""
  for name in names:
    if name not in manager.all_tasks:
      near = difflib.get_close_matches(name, manager.all_tasks, 3)
      hint = f'did you mean {", ".join(near)}?' if near else 'list all: lm_eval ls tasks'
      raise ValueError(f'--harness={name} is not a task of lm-eval or of --harness_files\nfix: {hint}')
  return tuple(dict.fromkeys(names))


def _first_line(error):
  text = str(error).strip() or type(error).__name__
  return f'{type(error).__name__}: {text.splitlines()[0]:.300}'


def _rows(subject, results, name, split, samples):
  """Rows of one task, with the versions of the task and the library."""
  fields = dict(
    n=len({sample['doc_id'] for sample in samples}),
    shots=results['n-shot'][name],
    version=results['versions'][name],
  )
  rows = _metric_rows(name, split, results['results'][name], **fields)
  first = {sample['doc_id']: sample for sample in reversed(samples)}
  judged = [judge(first[key]) for key in sorted(first)]
  examples = [
    common.Example(f'{name} {key}', first[key]['doc'], [Piece('text', text)], [])
    for key, (text, *_) in zip(sorted(first), judged, strict=True)
  ]
  columns = {'targets': [x[1] for x in judged], 'predictions': [x[2] for x in judged]}
  right = [x[3] for x in judged]
  subject.record(rows, examples, **columns, right=None if None in right else right)
  return rows


def _metric_rows(name, split, values, **fields):
  """Rows of the metrics of a task or of a group of tasks: {'metric,filter': value}."""
  rows = common.Rows('harness', name, split, **fields, harness=importlib.metadata.version('lm_eval'))
  for key, value in values.items():
    metric, _, name_of_filter = key.partition(',')
    if not isinstance(value, int | float) or metric.endswith('_stderr') or not name_of_filter:
      continue
    error = values.get(f'{metric}_stderr,{name_of_filter}')
    more = {'filter': name_of_filter} if name_of_filter != 'none' else {}
    if isinstance(error, int | float):
      more['interval'] = [value - Z * error, value + Z * error]
    rows.add(metric, value, **more)
  return rows


def judge(sample):
  """(context, right answer, answer, whether it is right or None) of a sample of lm-eval."""
  arguments = sample['arguments']
  arguments = [list(a.values()) if isinstance(a, dict) else list(a) for a in _values(arguments)]
  answers, target = sample['filtered_resps'], sample['target']
  if len(answers) > 1:  # multiple choice
    options = [a[1] for a in arguments]
    if len({a[0] for a in arguments}) > 1 and len(set(options)) == 1:  # the contexts are the options
      options = [a[0] for a in arguments]
    if isinstance(answers[0], str):  # repeats of one answer
      return arguments[0][0], str(target).strip(), answers[0].strip(), _is_right(sample)
    # acc_mutual_info asks for every option without a context, too.
    after = [i for i, (context, *_) in enumerate(arguments) if context] or range(len(answers))
    best = max(after, key=lambda i: float(answers[i][0]))
    is_index = str(target).isdecimal() and int(target) < len(options)
    right = options[int(target)] if is_index else str(target)
    return arguments[0][0], right.strip(), options[best].strip(), _is_right(sample)
  answer = answers[0] if isinstance(answers[0], str) else ''
  return arguments[0][0], str(target).strip(), answer.strip(), _is_right(sample)


def _values(arguments):
  return arguments.values() if isinstance(arguments, dict) else arguments


def _is_right(sample):
  """Whether the first share among a sample's metrics is 1; None where there is none."""
  scores = [sample[m] for m in ('acc', 'exact_match') if isinstance(sample.get(m), int | float)]
  return scores[0] == 1 if scores else None


def adapter(subject):
  """Make an lm_eval LM of a Subject. All processes of a job call it alike and get all results."""
  from lm_eval.api.model import LM

  class Adapter(LM):
    """Our log-likelihoods and completions as lm-eval asks for them."""

    def loglikelihood(self, requests, disable_tqdm=False):
      """[(log-likelihood, whether it is greedy)] of (context, continuation)."""
      pairs = [likelihood.encode_pair(subject, *request.args) for request in requests]
      scores = likelihood.score_requests(subject, pairs)
      if scores.truncated:
        log.warning('%d contexts lost their first tokens: they exceed the context', scores.truncated)
      return [(-float(nats), bool(is_greedy)) for nats, is_greedy in zip(*scores[:2], strict=True)]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
      """[log-likelihood] of whole texts, in windows of the context."""
      texts = [likelihood.windows(subject, request.args[0]) for request in requests]
      nats_N = likelihood.score_requests(subject, [window for windows in texts for window in windows]).nats
      parts = iter(nats_N)
      return [-float(sum(next(parts) for _ in windows)) for windows in texts]

    def generate_until(self, requests, disable_tqdm=False):
      """[text] after each context, up to a stop string."""
      return generate(subject, [request.args for request in requests])

  return Adapter()


def generate(subject, requests):
  """Complete (context, settings of lm-eval) -> list of texts; requests of equal settings share a batch."""
  begin = completions.begin_special(subject.cfg, subject.tokenizers)
  texts, groups = [''] * len(requests), {}
  for n, (_, settings) in enumerate(requests):
    groups.setdefault(repr(sorted(settings.items())), []).append(n)
  for group in groups.values():
    fields, stop = sampling_fields(requests[group[0]][1])
    room = subject.model.cfg.context - fields['max_new_tokens']
    if room < 1:
      raise ValueError(
        f'a task generates {fields["max_new_tokens"]} tokens and the context is {subject.model.cfg.context}\n'
        'fix: use a model with more context, or set max_gen_toks in a task file'
      )
    cfg = validate.override(SampleConfig(), **fields)  # not as the run samples: results are comparable
    ids = {n: completions.encode_prompt(subject.tokenizers, requests[n][0], begin)[-room:] for n in group}
    order = sorted(group, key=lambda n: -len(ids[n]))
    complete = functools.partial(completions.complete, subject.model, subject.tokenizers, cfg=cfg, stop=stop)
    for first in range(0, len(order), subject.batch_size):
      some = order[first : first + subject.batch_size]
      filled = [*some, *some[-1:] * (subject.batch_size - len(some))]  # another size would compile again
      for n, [(text, _), *_] in zip(some, complete([ids[n] for n in filled]), strict=False):
        texts[n] = text
      subject.raise_if_preempted()
  return texts


def sampling_fields(settings):
  """Fields of SampleConfig and stop strings of lm-eval's settings; greedy, unless do_sample is set."""
  until = settings.get('until') or []
  stop = [text for text in ([until] if isinstance(until, str) else until) if text]
  lengths = [settings[k] for k in ('max_gen_toks', 'max_new_tokens', 'max_tokens') if settings.get(k)]
  fields = {'num_samples': 1, 'guidance': 1.0, 'max_new_tokens': (lengths or [MAX_NEW_TOKENS])[0]}
  temperature = float(settings.get('temperature', 1.0)) if settings.get('do_sample') else 0.0
  if temperature:
    fields |= {name: settings[name] for name in ('top_k', 'top_p', 'min_p') if settings.get(name)}
  return fields | {'temperature': temperature}, stop
