"""The privacy section of a run's report, from `privacy` of its result.json (jobs/private_training.py)."""

from gpt_jax.reports.sections import Section, make_table


def privacy(run):
  """Return the guarantee of private training, what it rests on, and what it does not cover."""
  stated = run.privacy()
  if not stated:
    return Section('Privacy', ())
  rows = [
    ('mechanism', stated['mechanism']),
    ('neighboring data', stated['neighbors']),
    ('clipping norm', f'{stated["clip"]:g}'),
    ('noise multiplier', f'{stated["noise_multiplier"]:.4g}'),
    ('sampling rate', f'{stated["sampling_rate"]:.4g} of {stated["units"]:,} units'),
    ('steps', f'{stated["steps"]:,}'),
    ('accountant', stated['accountant']),
  ]
  limits = [f'not covered: {line}' for line in stated['not_covered']]
  guarantee = (
    f'(epsilon {stated["epsilon"]:.3f}, delta {stated["delta"]:g})-differential privacy of the weights'
  )
  return Section('Privacy', [make_table((), rows, ''), limits], f'For each {stated["unit"]}: {guarantee}.')
