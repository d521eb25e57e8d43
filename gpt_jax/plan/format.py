"""A plan as text, for `launch.py plan`."""

from gpt_jax.cluster.meshes import describe

GIB = 2**30
PREALLOCATED = 0.75  # share of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION


def gib(n):
  """Format bytes, such as '12.30 GiB'."""
  return f'{n / GIB:.2f} GiB'


def size(n):
  """Format bytes, in MiB below 0.1 GiB."""
  return gib(n) if n >= GIB / 10 else f'{n / 2**20:.2f} MiB'


def summary(plan):
  """One line per plan of a search."""
  memory, model = plan['train']['memory'], plan['model']
  line = (
    f'{describe(plan["mesh"])}, remat {model["remat"]}, {plan["batch_size"]} rows: '
    f'{gib(memory["total"])} of {gib(memory["available"])}'
  )
  if not plan['fits']:
    return f'{line}, does not fit'
  estimate = plan['train']['estimate']
  return (
    f'{line}, {estimate["tokens_per_second_serial"]:,.0f} to {estimate["tokens_per_second"]:,.0f} tokens/s'
  )


def memory_lines(memory, device):
  """Whether the program fits, and its bytes by purpose."""
  verdict = 'fits' if memory['fits'] else 'DOES NOT FIT'
  names = ('arguments', 'temporaries', 'output', 'program', *(('beside',) if memory['beside'] else ()))
  parts = ', '.join(f'{name} {gib(memory[name])}' for name in names)
  lines = [f'{verdict}: {gib(memory["total"])} of {gib(memory["available"])} per device: {parts}']
  if memory['compiler']:
    lines.append(f'the compiler: {memory["compiler"]}')
  share = memory['total'] / memory['available']
  if not device.startswith('TPU') and PREALLOCATED < share <= 1:
    lines.append(
      f'more than the {PREALLOCATED:.0%} that JAX takes of a GPU: set XLA_PYTHON_CLIENT_MEM_FRACTION=.95'
    )
  return lines


def collective_lines(collectives):
  """One line per collective of at least 1 MiB."""
  for c in collectives:
    if c['bytes'] >= 2**20:
      where = 'network' if c['network'] else 'link'
      yield (
        f'  {c["kind"]:18} {c["count"]:5.0f} x over {c["devices"]} devices ({c["axes"]}), '
        f'{c["bytes"] / 1e9:.3f} GB {c["dtype"]}, {c["sent"] / 1e9:.3f} GB sent by {where}'
      )


def lines(plan):
  """The plan as lines of text."""
  step, model = plan['train'], plan['model']
  yield (
    f'{plan["topology"]}: {plan["devices"]} x {plan["device"]}, '
    f'{describe(plan["mesh"])}; {plan["parameters"]:,} parameters, '
    f'{plan["rows"]} x {plan["length"]} tokens a step'
    f' in {plan["accumulate"]} piece(s); {model["dtype"]}, remat {model["remat"]}, '
    f'layers {"unrolled" if model["unroll"] == "on" else "scanned"}, attention {step["attention"]}'
  )
  yield from (f'note: {note}' for note in plan['notes'])
  yield from memory_lines(step['memory'], plan['device'])
  if {*step['held']} - {'trained parameters', 'optimizer', 'batch'}:
    held = ', '.join(f'{name} {size(n)}' for name, n in step['held'].items())
    yield f'held by each device during a step: {held}'
  for name, program in plan['before'].items():
    yield from before_lines(name, program, plan['device'])
  if 'estimate' in step:
    yield from train_lines(plan, step)
  yield from plan.get('table', ())
  if decode := plan.get('decode'):
    yield f'decode, {decode["rows"]} rows of {decode["slots"]} slots:'
    yield from (f'  {line}' for line in memory_lines(decode['memory'], plan['device']))
    if 'estimate' in decode:
      e = decode['estimate']
      yield (
        f'  estimate: at least {e["bound"] * 1e3:.3f} ms a token by {e["limit"]}, '
        f'at most {e["tokens_per_second"]:,.0f} tokens/s'
      )


def before_lines(name, program, device):
  """Memory and time of a program that runs before steps."""
  calls = f'{program["calls"]:g} x before each step' if program['calls'] else 'before the first step'
  yield f'{name}, {calls}:'
  yield from (f'  {line}' for line in memory_lines(program['memory'], device))
  if 'estimate' in program:
    e = program['estimate']
    yield (
      f'  estimate: at least {e["bound"] * 1e3:.3f} ms each by {e["limit"]}, '
      f'{e["serial"] * 1e3:.3f} ms if nothing overlaps'
    )


def train_lines(plan, step):
  """Work and roofline of the train step."""
  e, budget = step['estimate'], plan['budget']
  kernels = ', '.join(f'{n:.0f} x {name}' for name, n in step['kernels'].items()) or 'none'
  share = step['copies'] / max(step['traffic'], 1)
  copies = f' ({step["copies"] / 1e9:.2f} GB are copies)' if share >= 0.01 else ''
  yield (
    f'a step, each device: {step["flops"] / 1e12:.3f} TFLOP '
    f"({step['model_flops'] / step['flops']:.0%} are the model's, "
    f'{step["float32_flops"] / step["flops"]:.1%} in float32), '
    f'{step["traffic"] / 1e9:.2f} GB of memory traffic{copies}; fused attention: {kernels}'
  )
  yield from collective_lines(step['collectives'])
  parts = ', '.join(f'{name} {e[name] * 1e3:.2f} ms' for name in ('compute', 'memory', 'link', 'network'))
  yield f'estimate from data sheets, not measured: {parts}'
  yield (
    f'  a step takes at least {e["bound"] * 1e3:.2f} ms, by {e["limit"]}; '
    f'{e["serial"] * 1e3:.2f} ms if nothing overlaps'
  )
  if any(program['calls'] for program in plan['before'].values()):
    yield (
      f'  with what runs before it at least {e["step"] * 1e3:.2f} ms, '
      f'{e["step_serial"] * 1e3:.2f} ms if nothing overlaps'
    )
  yield (
    f'  at most {e["tokens_per_second"]:,.0f} tokens/s, MFU {e["mfu"]:.1%} '
    f'({e["mfu_causal"]:.1%} causal); if nothing overlaps {e["tokens_per_second_serial"]:,.0f}, '
    f'MFU {e["mfu_serial"]:.1%}'
  )
  cost = '' if budget['dollars'] is None else f', {budget["dollars"]:,.0f} dollars'
  yield f'  {budget["tokens"]:,} tokens take at least {budget["hours"]:,.2f} hours{cost}'
  yield f'compiled in {step["compile_seconds"]} s'
