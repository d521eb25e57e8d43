"""Notes of an analysis: what a reader must know to interpret its numbers."""

from gpt_jax.ablation import protocol
from gpt_jax.ablation.stats import comparability, inference, judging, sequential
from gpt_jax.ablation.sweeps import SWEEPS


def make_notes(study, arms, outcomes, family, looks, examples):
  """What a reader must know to interpret the numbers."""
  metric, tolerance = comparability.label(study), float(study['tolerance'])
  reason = str(study.get('metric_reason') or '')  # read from a file
  notes = [f'{reason[:1].upper()}{reason[1:]}.'] if reason else []
  notes += [
    f'Differences are arm minus baseline in {metric}, seed by seed. Intervals are 95 % of one arm '
    f'(paired t); p values and verdicts are Holm-corrected over {family} comparisons'
    + (f' in {1 + len(outcomes)} metrics.' if outcomes else '.')
  ]
  if study.get('sequential'):
    notes.append(_seeds_saved(study, arms))
  if tolerance:
    notes.append(
      f'"No difference" means: shown to be smaller than {tolerance:g} by two one-sided tests, even '
      'where it differs from 0. That assumes normal differences: rare large ones may be unseen.'
    )
  notes += _notes_on_tuning(study)
  notes += [
    f'Exploratory: {text}. A choice after results are known favors some.'
    for text in protocol.exploratory(study)
  ]
  if isinstance(judging.sequential_of(study), sequential.Extended):
    notes.append(
      f'Seeds were added to the {len(study["planned_seeds"])} of the plan. What those do not decide is '
      f'judged at {sequential.LATER * inference.ALPHA:.1%} over all later numbers of seeds, and intervals '
      'are wider: at most 5.5 % of studies without an effect then have a false verdict.'
    )
  elif any(arm['verdict'] == 'undecided' for arm in arms) and not study.get('sequential'):
    notes.append(
      'Seeds that are added now are later looks, which need ten times as much evidence. '
      'seeds=Sequential(...) plans for them.'
    )
  if len(looks) > 1:
    notes.append(f'Judged {len(looks)} times, with {", ".join(map(str, looks))} seeds.')
  if any(arm['se_examples'] for each in (arms, *(outcome['arms'] for outcome in outcomes)) for arm in each):
    notes.append(
      'Intervals include the error of having drawn these '
      f'{f"{examples} " if examples else ""}examples, which more seeds do not make smaller.'
    )
  notes += _unequal_targets(study, arms)
  for arm in (arm for arm in arms if arm['missing'] and arm['is_baseline']):
    notes.append(f'The baseline has no finite {metric} in {arm["missing"]} of its finished runs.')
  fewest = min((arm['n'] for arm in arms if not arm['reasons']), default=0)
  if fewest < 5:
    notes.append(
      f'With {fewest} seeds intervals are wide, and what is undecided may well be real. Verdicts assume '
      f'normal differences; sign flips check that from {judging.MIN_FLIPS} seeds on.'
    )
  for arm in (arm for arm in arms if arm['failed']):
    failed, name = arm['failed'], arm['name']
    if arm['is_baseline']:
      notes.append(f'The baseline failed in {failed} runs: no arm is compared on those seeds.')
    elif arm['values']:
      notes.append(
        f'{name}: {failed} of {run_count(arm)} runs failed; it is compared on the {arm["n"]} seeds that '
        'finished, which may flatter it.'
      )
    else:
      notes.append(f'{name}: no run finished, {failed} failed; there is nothing to judge.')
  sweep = SWEEPS.get(study.get('sweep'))
  return notes + ([sweep.note] if sweep and sweep.note else [])


def run_count(arm):
  """Return the number of runs of an arm."""
  return sum(arm['statuses'].values())


def _unequal_targets(study, arms):
  """Notes on arms with the baseline's tokens of which notably more or fewer are trained on, as by padding."""
  base = next((arm for arm in arms if arm['is_baseline']), {})
  for arm in arms:
    sides = [(one.get('tokens'), one.get('targets')) for one in (arm, base)]
    if all(map(all, sides)) and sides[0][0] == sides[1][0]:
      ratio = sides[0][1] / sides[1][1]
      if abs(ratio - 1) > comparability.NOTABLE:
        yield f'{arm["name"]}: {ratio:.3g} times the targets in as many tokens; the rest is padding.'


def _notes_on_tuning(study):
  """How the arms were tuned, and which may be better still beyond the values tried."""
  if not (search := study.get('search')):
    return
  keys, (base, *_) = ', '.join(search['keys']), search['arms'].values()
  seeds = len(search['seeds'])
  yield (
    f'Each arm has its best {keys} of {len(base["scores"])} values, by the mean of {seeds} other '
    f'seed{"s" * (seeds > 1)}.'
  )
  for name, arm in search['arms'].items():
    for key in arm['at_edge']:
      best = f'{key}={arm["best"][key]:g}'
      yield f'{name}: its best {best} is at the edge of what was tried, and may be better beyond it.'


def _seeds_saved(study, arms):
  """How a sequential study was judged, and how many runs it took."""
  first, most = (study['sequential'][key] for key in ('first', 'most'))
  runs = sum(run_count(arm) for arm in arms)
  return (
    f'Judged after every seed from {first} to {most}; p values and intervals hold whenever an arm stops. '
    f'{runs} runs, where {most} seeds an arm are {most * len(arms)}.'
  )
