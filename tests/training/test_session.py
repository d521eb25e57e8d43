"""What a run says between two steps."""

import types

from gpt_jax.training import session


def test_a_slow_start_is_said_once():
  said, meter = [], session.meter.Meter('tokens', 1)
  cfg = types.SimpleNamespace(
    log=types.SimpleNamespace(every=10), train=types.SimpleNamespace(steps_per_call=1)
  )
  s = types.SimpleNamespace(cfg=cfg, meter=meter, step=0, run=types.SimpleNamespace(print=said.append))
  for _ in range(3):
    session.record_step(s, {}, session.SILENCE / 2)
  assert said == ['2 steps took 30 s with compilation; metrics follow after step 10']
