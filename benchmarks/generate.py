"""Generation on a CPU against peers; `python -m benchmarks.cpu --only=generate` runs it.

GPT-2 124M with the same random weights on every side, a prompt of 32 tokens a row and 128 new ones,
top-k 200 (or greedy), batches of 1 and 8. Peers: transformers `generate` with its default and with its
static cache, a static-cache loop in torch.compile, CTranslate2; in float32 but for the rows that say
bfloat16 or int8, which a user would pick for speed. `first_seconds` of a row is the cold start: the first
generation, with its compilation.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import versus

PROMPT, NEW, TOP_K = 32, 128, 200
SIZES = {
  'small': dict(size='small'),
  'tiny': dict(size='small', layers=2, width=64, heads=4, vocab=1000, context=256, init_std=0.3),
}
PEERS = {
  'transformers': dict(maker='transformers_generate', cache=None),
  'transformers, static cache': dict(maker='transformers_generate', cache='static'),
  'transformers, bfloat16': dict(maker='transformers_generate', dtype='bfloat16'),
  'torch.compile, static cache': dict(maker='torch_loop'),
  'ctranslate2 float32': dict(maker='ctranslate2_generate'),
  'ctranslate2 int8': dict(maker='ctranslate2_generate', dtype='int8'),
}


def prompts(batch, vocab):
  """Random ids [batch, PROMPT], the same for every side."""
  return np.random.default_rng(0).integers(0, vocab, (batch, PROMPT))


def model_config(size):
  """ModelConfig of a name in SIZES."""
  from gpt_jax.model import presets

  return presets.gpt2(**SIZES[size]).resolved()


def export(size, folder):
  """Write the weights of all sides in the format of transformers."""
  import jax

  from gpt_jax.interop.huggingface import export_model
  from gpt_jax.model import gpt
  from gpt_jax.model import layers as nn

  cfg = model_config(size)
  model = jax.jit(lambda key: nn.initialize(gpt.GPT(cfg), key))(jax.random.key(0))
  export_model(cfg, model, None, Path(folder) / 'huggingface')


def ours(folder, batch, top_k=TOP_K, new=NEW):
  """gpt_jax: the whole generation is one compiled call."""
  from gpt_jax import sample
  from gpt_jax.interop.huggingface import import_model
  from gpt_jax.sampling import completions, decoding_layout
  from gpt_jax.tokenizers import grammar

  _, trained, _ = import_model(Path(folder) / 'huggingface')
  model = decoding_layout.prepare_model(trained)
  rules = grammar.plain(np.arange(model.cfg.V) < model.cfg.vocab)
  cfg = sample.SampleConfig(max_new_tokens=new, top_k=top_k, temperature=1.0 if top_k else 0.0)
  ids = prompts(batch, model.cfg.vocab).tolist()

  def run():
    state = sample.generate(model, ids, cfg, rules)
    return [row for row, _ in completions.new_tokens(state, ids, 1)]

  return run


def peer_model(folder, dtype='float32'):
  """(torch, the transformers model)."""
  try:
    import torch
    import transformers
  except ImportError as e:
    raise versus.Missing('torch or transformers is not installed') from e
  torch.set_num_threads(versus.CORES)
  torch.manual_seed(0)
  path = Path(folder) / 'huggingface'
  return torch, transformers.GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval()


def transformers_generate(folder, batch, top_k=TOP_K, new=NEW, cache=None, dtype='float32'):
  """transformers `generate`, without an end-of-text id: all rows get `new` tokens."""
  torch, model = peer_model(folder, dtype)
  model.generation_config.eos_token_id = None
  ids_BT = torch.tensor(prompts(batch, model.config.vocab_size))
  options = dict(do_sample=True, top_k=top_k) if top_k else dict(do_sample=False)
  options |= dict(cache_implementation=cache) if cache else {}

  def run():
    with torch.inference_mode():
      out = model.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=new, pad_token_id=0, **options
      )
    return out[:, PROMPT:].tolist()

  return run


def torch_loop(folder, batch, top_k=TOP_K, new=NEW):
  """A compiled torch loop with a static cache: see torch_decode.py."""
  torch, peer = peer_model(folder)
  from benchmarks import torch_decode

  c = peer.config
  decoder = torch_decode.Decoder(
    c.n_layer, c.n_embd, c.n_head, c.vocab_size, c.n_positions, batch, PROMPT + new
  )
  torch_decode.load(decoder, peer)
  ids_BT = torch.tensor(prompts(batch, c.vocab_size))
  torch._inductor.config.freezing = True  # packs the weights once, as `prepare_model` does
  generate = torch_decode.generator(decoder.eval(), top_k, 'default')
  return lambda: generate(ids_BT, new).tolist()


def ctranslate2_generate(folder, batch, top_k=TOP_K, new=NEW, dtype='float32'):
  """CTranslate2 with as many threads as cores; dtype int8: it quantizes on loading."""
  _, peer = peer_model(folder)
  try:
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader
  except ImportError as e:
    raise versus.Missing('ctranslate2 is not installed') from e
  spec, V = GPT2Loader().get_model_spec(peer), peer.config.vocab_size
  spec.register_vocabulary([f't{i}' for i in range(V)])
  spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = 't0', 't0', f't{V - 1}'
  spec.validate()
  spec.optimize()
  path = tempfile.mkdtemp(dir=folder)
  spec.save(path)
  del peer, spec
  generator = ctranslate2.Generator(
    path, device='cpu', compute_type=dtype, inter_threads=1, intra_threads=versus.CORES
  )
  token_rows = [[f't{i}' for i in row] for row in prompts(batch, V)]

  def run():
    results = generator.generate_batch(
      token_rows, max_length=new, min_length=new, sampling_topk=top_k or 1, include_prompt_in_result=False
    )
    return [result.sequences_ids[0] for result in results]

  return run


def label(batch):
  """Name of the row of a batch size."""
  return f'batch {batch}'


def rows(size='small', batches=(1, 8), top_k=TOP_K, turns=3, peers=tuple(PEERS), save=print):
  """Compare at each batch -> {batch: {'rows': of versus.compare, 'ratios': {peer: [...]}}}."""
  results = {}
  if not batches:
    return results
  with tempfile.TemporaryDirectory() as folder:
    code = f'from benchmarks.generate import export; export({size!r}, {folder!r})'
    subprocess.run([sys.executable, '-c', code], cwd=versus.ROOT, check=True)
    for batch in batches:
      options = dict(folder=folder, batch=batch, top_k=top_k)
      sides = [versus.Side('gpt_jax', 'benchmarks.generate:ours', options)]
      for name in peers:
        peer_options = dict(PEERS[name])
        maker = f'benchmarks.generate:{peer_options.pop("maker")}'
        sides.append(versus.Side(name, maker, options | peer_options))

      def save_batch(timed, batch=batch):
        results[label(batch)] = add_speed(timed, batch)
        save(results)

      save_batch(versus.compare(sides, turns, save_batch))
  return results


def add_speed(timed, batch):
  """Add tokens/s to the rows of one batch -> {rows, ratios to the peers}."""
  for row in timed.values():
    if 'median' in row:
      row['tokens_per_second'] = batch * NEW / row['median']
  peers = [name for name in PEERS if name in timed]
  return {'rows': timed, 'ratios': {name: versus.ratio(timed, 'gpt_jax', name) for name in peers}}


def main():
  """Measure, write after each turn, print the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='small', choices=SIZES)
  parser.add_argument('--batches', default='1,8')
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--peers', default=';'.join(PEERS), help='peers to run, separated by ;')
  parser.add_argument('--out', type=Path, help='write the rows to this file')
  arguments = parser.parse_args()
  claim = f'generation of {NEW} tokens after {PROMPT}, top-k {TOP_K}, {arguments.size}'

  def save(results):
    if arguments.out:
      arguments.out.write_text(json.dumps(versus.result_content('generate', claim, results)) + '\n')

  batches = [int(b) for b in arguments.batches.split(',')]
  peers = arguments.peers.split(';')
  results = rows(arguments.size, batches, turns=arguments.turns, peers=peers, save=save)
  for batch, content in results.items():
    for name, row in content['rows'].items():
      speed = f'{row["tokens_per_second"]:8.1f} tok/s' if 'median' in row else row['missing']
      print(f'{batch}  {name:28s} {speed}  {content["ratios"].get(name, "")}')


if __name__ == '__main__':
  main()
