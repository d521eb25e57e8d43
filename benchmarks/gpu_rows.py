"""Workers of `python -m benchmarks.gpu`: each measures one row in its own process.

  python -m benchmarks.gpu_rows WORKER ARGUMENTS-AS-JSON

Prints `RESULT {...}` lines; the last one counts. Needs jax, flax, optax and numpy; peers need torch and
transformers. All inputs are random: matrix products of zeros are 13 % faster.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import sys
import time
from types import SimpleNamespace

import numpy as np

CHAR = dict(layers=6, width=384, heads=6, vocab=65, context=256)  # nanoGPT's 10.7M characters
TINY = dict(layers=2, width=64, heads=2, vocab=512, context=128)
MODELS = {'124M': {}, '1558M': dict(size='xl'), '10.7M': CHAR, 'tiny': TINY}
CHUNKS = 5  # timed chunks of a row; the row reports their median


def report(**numbers):
  """Print the numbers so far for the parent process."""
  print('RESULT', json.dumps(numbers), flush=True)


def model_config(model, **overrides):
  """Resolved ModelConfig of a name in MODELS."""
  from gpt_jax.model import presets

  return presets.gpt2(**MODELS[model] | overrides).resolved()


def timed(call, wait, seconds):
  """Time `call()` in CHUNKS, `seconds` in total -> (median seconds, chunks); wait(result) ends a chunk."""
  wait(call())  # warm-up
  start = time.perf_counter()
  wait(call())
  many = max(1, round(seconds / CHUNKS / (time.perf_counter() - start)))
  chunks = []
  for _ in range(CHUNKS):
    start = time.perf_counter()
    for _ in range(many):
      result = call()
    wait(result)
    chunks.append((time.perf_counter() - start) / many)
  return float(np.median(chunks)), chunks


def probe(size, seconds):
  """Report the device and the speed of its matrix products and copies."""
  import jax
  import jax.numpy as jnp

  from gpt_jax.runs import hardware

  device, (peak, source) = jax.devices()[0], hardware.peak_flops()
  facts = dict(device=device.device_kind, platform=device.platform, jax=jax.__version__)
  facts |= dict(peak=peak, peak_source=source, **peers())
  facts['capability'] = str(getattr(device, 'compute_capability', ''))
  if device.platform == 'gpu':
    from gpt_jax.model.kernels.cudnn import cudnn_obstacle

    facts['cudnn_attention'] = cudnn_obstacle() or 'works'
  report(**facts)
  shapes = [(65536, 768, 3072), (65536, 3072, 768), (32768, 768, 50304)]
  if size == 'tiny':
    shapes = [(256, 64, 256)]
  dtype = jnp.float32 if device.platform == 'cpu' else jnp.bfloat16
  for M, K, N in shapes:
    keys = jax.random.split(jax.random.key(0))
    a, b = jax.random.normal(keys[0], (M, K), dtype), jax.random.normal(keys[1], (K, N), dtype)
    multiply = functools.partial(jax.jit(jnp.matmul), a, b)
    median, _ = timed(multiply, jax.block_until_ready, seconds)
    facts[f'matmul {M}x{K}x{N} TFLOP/s'] = 2 * M * K * N / median / 1e12
    report(**facts)
  x = jax.random.normal(jax.random.key(1), (2**30 if size != 'tiny' else 2**16,), dtype)
  copy = functools.partial(jax.jit(lambda x: x * 2), x)
  median, _ = timed(copy, jax.block_until_ready, seconds)
  report(**facts, copy_bytes_per_second=2 * x.nbytes / median)


def peers():
  """Versions of the installed peers."""
  versions = {}
  for package in ('torch', 'transformers'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  return versions


def build_program(cfg, steps_per_call):
  """The train program of `launch.py train`, without the config library -> (program, mesh)."""
  import jax

  from gpt_jax import losses, optim, sharding
  from gpt_jax.model.adapters import AdapterConfig
  from gpt_jax.step import gpt_program

  mesh = sharding.make_mesh(sharding.MeshConfig())
  jax.sharding.set_mesh(mesh)
  train = dict(steps=10000, seed=0, accumulate=1, spike_sigma=0.0, spike_window=1)
  settings = SimpleNamespace(
    model=cfg,
    adapter=AdapterConfig(),
    optim=optim.OptimConfig(),
    loss=losses.LossConfig(),
    train=SimpleNamespace(**train, steps_per_call=steps_per_call),
  )
  return gpt_program(settings, cfg, mesh), mesh


def train(model, batch, length, seconds, overrides=None, steps_per_call=1):
  """Time full optimizer steps -> tokens/s, steps/s, MFU in both conventions."""
  import jax

  from gpt_jax.cluster.batches import to_devices
  from gpt_jax.model import costs
  from gpt_jax.runs import hardware

  cfg = model_config(model, **overrides or {})
  program, mesh = build_program(cfg, steps_per_call)
  state = program.init()
  rng = np.random.default_rng(0)
  lead = () if steps_per_call == 1 else (steps_per_call,)
  ids = rng.integers(0, cfg.vocab, (*lead, batch, length + 1), np.int32)
  data = {
    'token_ids_BT': ids[..., :-1],
    'target_ids_BT': ids[..., 1:],
    'loss_mask_BT': np.ones((*lead, batch, length), np.float32),
  }
  on_device = to_devices(data, mesh) if not lead else jax.device_put(data)
  metrics = None

  def run():
    nonlocal state, metrics
    state, metrics = program.step(state, on_device)
    return metrics

  run()
  loss = float(np.ravel(jax.device_get(metrics['loss']))[-1])
  start = float(os.environ.get('BENCHMARK_START', time.time()))
  first = dict(first_step_seconds=time.time() - start, loss=loss)
  report(**first)
  if not seconds:
    return
  median, chunks = timed(run, jax.block_until_ready, seconds)
  tokens = batch * length * steps_per_call / median
  flops, (peak, _) = costs.flops_per_token(cfg, length), hardware.peak_flops()
  report(
    **first,
    tokens_per_second=tokens,
    steps_per_second=steps_per_call / median,
    chunks=chunks,
    palm_mfu=tokens * flops['full'] / peak,
    causal_mfu=tokens * flops['causal'] / peak,
    peak=peak,
    batch=batch,
    memory_gib=hardware.memory_gib(),
  )


def generate(model, batch, prompt, new, top_k=200):
  """Time full generations -> tokens/s over all rows, bytes of weights and cache read per second."""
  import jax

  from gpt_jax import sample
  from gpt_jax.model import gpt
  from gpt_jax.model import layers as nn
  from gpt_jax.sampling import decoding_layout
  from gpt_jax.tokenizers import grammar

  cfg = model_config(model)
  weights = jax.jit(lambda key: nn.initialize(gpt.GPT(cfg), key))(jax.random.key(0))
  weights = decoding_layout.prepare_model(weights)
  rules = grammar.plain(np.arange(cfg.V) < cfg.vocab)
  choice = sample.SampleConfig(max_new_tokens=new, top_k=top_k)
  prompts = np.random.default_rng(0).integers(0, cfg.vocab, (batch, prompt)).tolist()

  def run():
    start = time.perf_counter()
    state = sample.generate(weights, prompts, choice, rules)
    assert int(state.lengths_B.min()) == prompt + new
    return time.perf_counter() - start

  first = run()
  report(first_seconds=first)
  seconds = float(np.median([run() for _ in range(CHUNKS)]))
  size = sum(x.nbytes for x in jax.tree.leaves(weights))
  moved = size + batch * cfg.layers * 2 * cfg.G * cfg.K * (prompt + new / 2) * size_of(cfg.dtype)
  report(first_seconds=first, tokens_per_second=batch * new / seconds, bytes_per_second=new / seconds * moved)


def size_of(dtype):
  """Bytes per element."""
  return 2 if dtype == 'bfloat16' else 4


def torch_device():
  """Set up torch for the peers -> (torch, device, dtype)."""
  import torch

  torch.manual_seed(0)
  torch.set_float32_matmul_precision('high')
  if torch.cuda.is_available():
    return torch, 'cuda', torch.bfloat16
  return torch, 'cpu', torch.float32


def torch_train(model, batch, length, seconds, attention='cudnn', mode='default'):
  """Time nanoGPT's step in torch: autocast, fused AdamW, SDPA -> tokens/s, steps/s.

  mode: a mode of torch.compile, or 'eager'.
  """
  torch, device, dtype = torch_device()
  from torch.nn.attention import SDPBackend, sdpa_kernel

  from benchmarks import torch_gpt

  cfg = model_config_of_torch(model)
  net = torch_gpt.GPT(cfg.layers, cfg.width, cfg.heads, cfg.context, cfg.V).to(device)
  optimizer = torch_gpt.optimizer(net)
  options = {} if mode == 'default' else dict(mode=mode)
  compiled = net if mode == 'eager' else torch.compile(net, **options)
  ids = torch.randint(0, cfg.vocab, (batch, length + 1), device=device)
  kernels = dict(cudnn=SDPBackend.CUDNN_ATTENTION, flash=SDPBackend.FLASH_ATTENTION)
  chosen = kernels[attention] if device == 'cuda' else SDPBackend.MATH

  def loss_of(net):
    with torch.autocast(device, dtype, enabled=device == 'cuda'):
      return net(ids[:, :-1], ids[:, 1:])

  wait = lambda _: torch.cuda.synchronize() if device == 'cuda' else None
  with sdpa_kernel(chosen):
    run = lambda: torch_gpt.train_step(compiled, loss_of, optimizer)
    wait(run())
    median, chunks = timed(run, wait, seconds)
  report(tokens_per_second=batch * length / median, steps_per_second=1 / median, chunks=chunks)


def model_config_of_torch(model):
  """ModelConfig for a peer, with jax on the CPU so that it takes no GPU memory."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return model_config(model)


def torch_generate(model, batch, prompt, new, kind, top_k=200):
  """Time transformers `generate` (kind default or static) or a compiled static loop (kind loop)."""
  torch, device, dtype = torch_device()
  cfg = model_config_of_torch(model)
  ids_BT = torch.randint(0, cfg.vocab, (batch, prompt), device=device)
  if kind == 'loop':
    from benchmarks import torch_decode

    sizes = (cfg.layers, cfg.width, cfg.heads, cfg.vocab, cfg.context, batch, prompt + new)
    net = torch_decode.Decoder(*sizes).to(device, dtype).eval()
    mode = 'reduce-overhead' if device == 'cuda' else 'default'
    decode = torch_decode.generator(net, top_k, mode)
    call = lambda: decode(ids_BT, new)
  else:
    import transformers

    hf = transformers.GPT2Config(
      n_layer=cfg.layers,
      n_embd=cfg.width,
      n_head=cfg.heads,
      vocab_size=cfg.vocab,
      n_positions=cfg.context,
      eos_token_id=None,
      bos_token_id=0,
    )
    net = transformers.GPT2LMHeadModel(hf).to(device, dtype).eval()
    options = dict(max_new_tokens=new, do_sample=True, top_k=top_k, pad_token_id=0)
    options |= dict(cache_implementation='static') if kind == 'static' else {}

    def call():
      with torch.inference_mode():
        return net.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **options)[:, prompt:]

  def run():
    start = time.perf_counter()
    assert call().cpu().shape == (batch, new)
    return time.perf_counter() - start

  first, _ = run(), run()
  seconds = float(np.median([run() for _ in range(CHUNKS)]))
  report(first_seconds=first, tokens_per_second=batch * new / seconds)


WORKERS = {
  'probe': probe,
  'train': train,
  'generate': generate,
  'torch_train': torch_train,
  'torch_generate': torch_generate,
}

if __name__ == '__main__':
  WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))
