"""What a step can cost at best: from work and the rates of data sheets to seconds, MFU and money.

An estimate, not a measurement: nothing reaches the rates of a data sheet, and how much of memory
and network traffic hides behind arithmetic is unknown. `bound` is the time if all of it does, the
least that the program can take; `serial` the time if none of it does.

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
FLOAT32 = 1 / 2  # TPU and GPU: float32 products at best at this share of the bfloat16 rate


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one call on one device, by what they are spent on."""

  compute: float
  memory: float
  link: float  # collectives within a slice or host
  network: float  # collectives across them

  @property
  def bound(self):
    """Seconds if everything overlaps: no such program is faster."""
    return max(self.compute, self.memory, self.link, self.network)

  @property
  def serial(self):
    """Seconds if nothing overlaps."""
    return self.compute + self.memory + self.link + self.network

  @property
  def limit(self):
    """What the bound comes from."""
    return max(('compute', 'memory', 'link', 'network'), key=lambda name: getattr(self, name))


def estimate(costs, chip, peak):
  """hlo.Costs, topologies.Chip and FLOP/s in bfloat16 -> Estimate."""
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
  """Bytes that each device sends for an hlo.Collective, all its calls together."""
  return c.bytes * RING[c.kind](c.devices) if c.devices > 1 else 0.0


def rates(seconds, tokens, flops_per_token, devices, peak):
  """-> (tokens a second of all devices, MFU) of a step of so many tokens."""
  per_second = tokens / seconds
  return per_second, per_second * flops_per_token / (devices * peak)


def budget(tokens, per_second, devices, price):
  """-> (hours, dollars or None) of a token budget; price: dollars a device-hour, 0 = unknown."""
  hours = tokens / per_second / 3600
  return hours, hours * devices * price if price else None
