"""Roofline estimates: seconds, MFU and dollars from a program's work and the rates of data sheets.

An estimate, not a measurement: no program reaches the rates of a data sheet, and how much of memory and
network traffic overlaps with arithmetic is unknown. `bound` is the time if all of it does, a lower limit;
`serial` the time if none of it does.

Sources: roofline model (Williams et al. 2009); bytes that a ring sends (Thakur et al. 2005).
"""

import dataclasses

RING = {  # share of the larger buffer that each device sends; n devices
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1.0,
}
FLOAT32 = 1 / 2  # share of the bfloat16 rate that float32 products reach at best on TPU and GPU


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one call on one device, by resource."""

  compute: float
  memory: float
  link: float  # collectives within a slice or host
  network: float  # collectives across them

  @property
  def bound(self):
    """Seconds if everything overlaps: a lower limit."""
    return max(dataclasses.astuple(self))

  @property
  def serial(self):
    """Seconds if nothing overlaps."""
    return self.compute + self.memory + self.link + self.network

  @property
  def limit(self):
    """The resource that sets the bound."""
    seconds = dataclasses.asdict(self)
    return max(seconds, key=seconds.get)

  def as_dict(self):
    """All of it, by name."""
    return dataclasses.asdict(self) | {'bound': self.bound, 'serial': self.serial, 'limit': self.limit}


def estimate(costs, chip, peak):
  """The Estimate of ProgramCosts on a topologies.Chip; peak: bfloat16 FLOP/s."""
  seconds = {False: 0.0, True: 0.0}
  for c in costs.collectives:
    seconds[c.network] += sent(c) / (chip.network if c.network else chip.link)
  slow = costs.float32_flops * (1 / FLOAT32 - 1)
  return Estimate(
    compute=(costs.flops + slow) / peak,
    memory=costs.traffic / chip.bandwidth,
    link=seconds[False],
    network=seconds[True],
  )


def sent(c):
  """Bytes that each device sends for all calls of a program_costs.Collective."""
  return c.bytes * RING[c.kind](c.devices) if c.devices > 1 else 0.0


def rates(seconds, tokens, flops_per_token, devices, peak):
  """Return (tokens/s of all devices, MFU) of a step of `tokens` tokens."""
  per_second = tokens / seconds
  return per_second, per_second * flops_per_token / (devices * peak)


def budget(tokens, per_second, devices, price):
  """Return (hours, dollars or None) of a token budget; price: dollars per device-hour, 0 = unknown."""
  hours = tokens / per_second / 3600
  return hours, hours * devices * price if price else None
